"""A classifier, trained by helios."""

import helios
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

EPOCHS = 3
x = torch.randn(256, 8, generator=torch.Generator().manual_seed(0))
y = (x.sum(1) > 0).long()
train = DataLoader(TensorDataset(x[:192], y[:192]), batch_size=32)
valid = DataLoader(TensorDataset(x[192:], y[192:]), batch_size=64)


class Data(helios.DataModule):
    def setup(self):
        pass

    def train_dataloader(self):
        return train

    def valid_dataloader(self):
        return valid

    test_dataloader = valid_dataloader


class Classifier(helios.Model):
    def setup(self, fast_init=False):
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2))
        self.optimizer = helios.optim.AdamW(lr=1e-2)

    def loss(self, batch):
        inputs, labels = batch
        return F.cross_entropy(self.net(inputs), labels)


model = Classifier("classifier")
trainer = helios.Trainer(
    total_steps=EPOCHS,
    valid_frequency=1,
    chkpt_frequency=1,
    chkpt_root="runs",
    use_cpu=True,
    print_banner=False,
)
trainer.train_exceptions.append(Exception)  # raise what goes wrong
trainer.fit(model, Data())
trainer.test(model, Data())

print(f"valid loss {model.test_metrics['loss']!r}")
