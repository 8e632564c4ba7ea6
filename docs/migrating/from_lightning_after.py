"""A classifier, trained by helios."""

import helios
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset


class Classifier(helios.Model):
    def setup(self, fast_init=False):
        self.net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 2))
        self.optimizer = helios.optim.chain(
            clip=helios.optim.clip_by_global_norm(1.0),
            adamw=helios.optim.AdamW(lr=lambda step: 1e-2 * 0.99**step),
        )
        self.monitor = helios.Monitor("accuracy", mode="max")

    def loss(self, batch):
        inputs, labels = batch
        logits = self.net(inputs)
        return F.cross_entropy(logits, labels), {"accuracy": logits.argmax(1) == labels}


class Data(helios.DataModule):
    def setup(self):
        x = torch.randn(256, 8, generator=torch.Generator().manual_seed(0))
        y = (x.sum(1) > 0).long()
        train, valid = TensorDataset(x[:192], y[:192]), TensorDataset(x[192:], y[192:])
        self._train_dataset = self._create_dataset(train, {"batch_size": 32, "shuffle": True})
        self._valid_dataset = self._create_dataset(valid, {"batch_size": 64})
        self._test_dataset = self._valid_dataset


trainer = helios.Trainer(
    total_steps=5,
    use_cpu=True,
    accumulation_steps=2,
    valid_frequency=1,
    early_stop_cycles=3,
    chkpt_frequency=1,
    chkpt_root="runs",
    random_seed=0,
    print_banner=False,
)
trainer.train_exceptions.append(Exception)  # raise what goes wrong
model = Classifier("classifier")
trainer.fit(model, Data())
trainer.test(model, Data())
print(f"accuracy {model.test_metrics['accuracy']:.2f}")
