"""A classifier whose train_step does everything."""

import pathlib
import typing

import helios.core.logging as hlcl
import helios.data as hld
import helios.model as hlm
import helios.plugins as hlp
import helios.trainer as hlt
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset


class Data(hld.DataModule):
    def setup(self) -> None:
        x = torch.randn(256, 8, generator=torch.Generator().manual_seed(0))
        y = (x.sum(1) > 0).long()
        params = hld.DataLoaderParams(batch_size=32, shuffle=True, pin_memory=False)
        self._train_dataset = self._create_dataset(TensorDataset(x[:192], y[:192]), params)
        params = hld.DataLoaderParams(batch_size=32, pin_memory=False)
        self._valid_dataset = self._create_dataset(TensorDataset(x[192:], y[192:]), params)
        self._test_dataset = self._create_dataset(TensorDataset(x[192:], y[192:]), params)


class Cycles(hlp.Plugin):
    def __init__(self) -> None:
        super().__init__("cycles")
        self.done = 0

    def setup(self) -> None:
        pass

    def on_validation_end(self, validation_cycle: int) -> None:
        self.done += 1

    def state_dict(self) -> dict[str, typing.Any]:
        return {"done": self.done}

    def load_state_dict(self, state_dict: dict[str, typing.Any]) -> None:
        self.done = state_dict["done"]


@hlm.MODEL_REGISTRY.register
class Classifier(hlm.Model):
    def setup(self, fast_init: bool = False) -> None:
        self._net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 2))
        self._net.to(self.device)
        self._best = 0.0
        if fast_init:
            return
        self._optimizer = torch.optim.AdamW(self._net.parameters(), lr=1e-2)
        self._scheduler = torch.optim.lr_scheduler.StepLR(self._optimizer, step_size=2)

    def load_state_dict(self, state_dict: dict[str, typing.Any], fast_init: bool = False) -> None:
        self._net.load_state_dict(state_dict["net"])
        self._best = state_dict["best"]
        if not fast_init:
            self._optimizer.load_state_dict(state_dict["optimizer"])
            self._scheduler.load_state_dict(state_dict["scheduler"])

    def state_dict(self) -> dict[str, typing.Any]:
        return {
            "net": self._net.state_dict(),
            "best": self._best,
            "optimizer": self._optimizer.state_dict(),
            "scheduler": self._scheduler.state_dict(),
        }

    def trained_state_dict(self, *args: typing.Any, **kwargs: typing.Any) -> dict[str, typing.Any]:
        return self._net.state_dict()

    def train(self) -> None:
        self._net.train()

    def eval(self) -> None:
        self._net.eval()

    def append_metadata_to_chkpt_name(self, chkpt_name: str) -> str:
        return f"{chkpt_name}_best_{self._best:.2f}"

    def train_step(self, batch: typing.Any, state: hlt.TrainingState) -> None:
        inputs, labels = batch
        self._optimizer.zero_grad()
        loss = F.cross_entropy(self._net(inputs), labels)
        loss.backward()
        self._optimizer.step()
        self._loss_items["cross_entropy"] = loss

    def on_training_batch_end(self, state: hlt.TrainingState, should_log: bool = False) -> None:
        super().on_training_batch_end(state, should_log)
        if should_log:
            root_logger = hlcl.get_root_logger()
            mean = self._running_losses["cross_entropy"] / state.running_iter
            root_logger.info(f"update {state.current_iteration}: mean loss {mean:.4f}")

    def on_training_epoch_end(self, current_epoch: int) -> None:
        self._scheduler.step()

    def on_validation_start(self, validation_cycle: int) -> None:
        super().on_validation_start(validation_cycle)
        self._val_scores["right"] = 0

    def valid_step(self, batch: typing.Any, step: int) -> None:
        inputs, labels = batch
        self._val_scores["right"] += (self._net(inputs).argmax(1) == labels).sum().item()

    def on_validation_end(self, validation_cycle: int) -> None:
        super().on_validation_end(validation_cycle)
        self._val_scores["accuracy"] = self._val_scores["right"] / 64

    def have_metrics_improved(self) -> bool:
        improved = self._val_scores["accuracy"] > self._best
        self._best = max(self._best, self._val_scores["accuracy"])
        return improved

    def on_testing_start(self) -> None:
        super().on_testing_start()
        self._test_scores["right"] = 0

    def test_step(self, batch: typing.Any, step: int) -> None:
        inputs, labels = batch
        self._test_scores["right"] += (self._net(inputs).argmax(1) == labels).sum().item()

    def on_testing_end(self) -> None:
        super().on_testing_end()
        print(f"accuracy {self._test_scores['right'] / 64:.2f}")


def main() -> None:
    trainer = hlt.Trainer(
        train_unit=hlt.TrainingUnit.EPOCH,
        total_steps=4,
        valid_frequency=1,
        chkpt_frequency=1,
        print_frequency=5,
        early_stop_cycles=3,
        use_cpu=True,
        chkpt_root=pathlib.Path("runs").absolute(),
        log_path=pathlib.Path("logs").absolute(),
        enable_file_logging=True,
    )
    trainer.plugins["cycles"] = Cycles()
    model = hlm.create_model("Classifier", save_name="classifier")
    if trainer.fit(model, Data()):
        trainer.test(model, Data())


if __name__ == "__main__":
    main()
