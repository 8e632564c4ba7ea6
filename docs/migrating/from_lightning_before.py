"""A classifier, trained by Lightning."""

import lightning
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Classifier(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 2))

    def training_step(self, batch, batch_idx):
        inputs, labels = batch
        loss = F.cross_entropy(self.net(inputs), labels)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        inputs, labels = batch
        logits = self.net(inputs)
        self.log("loss", F.cross_entropy(logits, labels))
        self.log("accuracy", (logits.argmax(1) == labels).float().mean())

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.99**step)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }


class Data(lightning.LightningDataModule):
    def setup(self, stage=None):
        x = torch.randn(256, 8, generator=torch.Generator().manual_seed(0))
        y = (x.sum(1) > 0).long()
        self.train, self.valid = TensorDataset(x[:192], y[:192]), TensorDataset(x[192:], y[192:])

    def train_dataloader(self):
        return DataLoader(self.train, batch_size=32, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.valid, batch_size=64)


lightning.seed_everything(0)
trainer = lightning.Trainer(
    max_epochs=5,
    accelerator="cpu",
    gradient_clip_val=1.0,
    accumulate_grad_batches=2,
    callbacks=[
        EarlyStopping("accuracy", mode="max", patience=3),
        ModelCheckpoint(dirpath="runs", save_last=True),
    ],
    logger=False,
    enable_progress_bar=False,
)
model = Classifier()
trainer.fit(model, Data())
[result] = trainer.validate(model, Data(), verbose=False)
print(f"accuracy {result['accuracy']:.2f}")
