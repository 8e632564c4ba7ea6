"""A classifier, trained by a loop written by hand."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

EPOCHS = 3
x = torch.randn(256, 8, generator=torch.Generator().manual_seed(0))
y = (x.sum(1) > 0).long()
train = DataLoader(TensorDataset(x[:192], y[:192]), batch_size=32)
valid = DataLoader(TensorDataset(x[192:], y[192:]), batch_size=64)

torch.manual_seed(0)
net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2))
optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)

for _ in range(EPOCHS):
    net.train()
    for inputs, labels in train:
        optimizer.zero_grad()
        loss = F.cross_entropy(net(inputs), labels)
        loss.backward()
        optimizer.step()
    net.eval()
    with torch.no_grad():
        for inputs, labels in valid:
            final = F.cross_entropy(net(inputs), labels).item()
    torch.save({"net": net.state_dict(), "optimizer": optimizer.state_dict()}, "loop.pth")

print(f"valid loss {final!r}")
