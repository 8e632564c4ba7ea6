"""``helios plan`` shows the calendar of a run, and says what of it never happens."""

from __future__ import annotations

import json

import pytest

from helios.cli.main import main


def printed(capsys, arguments):
    status = main(["plan", *arguments.split()])
    out, err = capsys.readouterr()
    assert not err
    return status, out


def test_batches_with_nothing_between_them_are_one_line(capsys):
    status, out = printed(capsys, "--total-steps 2 --batches-per-epoch 99 --valid-frequency 2")
    assert status == 0
    assert out.split("\n\n")[1] == (
        "  epoch 1 begins\n"
        "    batches 1 to 99: 99 updates\n"
        "  epoch 1 ends, at update 99\n"
        "  epoch 2 begins\n"
        "    batches 1 to 99: 99 updates\n"
        "    validation 1, at update 198\n"
        "  epoch 2 ends, at update 198\n"
        "    checkpoint of the last state, at update 198\n"
        "  stop: total_steps, at update 198\n"
    )


def test_totals_come_first(capsys):
    _, out = printed(
        capsys,
        "--unit iteration --total-steps 1000 --batches-per-epoch 500 --accumulation-steps 4"
        " --valid-frequency 100 --chkpt-frequency 300 --print-frequency 10",
    )
    assert out.split("\n\n")[0].splitlines() == [
        "the run ends after 1,000 updates",
        "  8 epochs",
        "  1,000 updates",
        "  4,000 micro-batches",
        "  10 validations",
        "  4 checkpoints",
        "  100 logs",
    ]


def test_the_first_and_the_last_lines_of_a_long_run_are_shown(capsys):
    arguments = "--unit iteration --total-steps 2000000000 --valid-frequency 10 --lines 2"
    _, out = printed(capsys, arguments)
    assert out.split("\n\n")[1].splitlines() == [
        "  epoch 1 begins",
        "    batches 1 to 10: 10 updates",
        "  ...",
        "    checkpoint of the last state, at update 2,000,000,000",
        "  stop: total_steps, at update 2,000,000,000",
    ]


def test_a_run_without_an_end_is_shown_as_far_as_asked_for(capsys):
    status, out = printed(capsys, "--unit iteration --valid-frequency 500 --lines 3")
    assert status == 0
    assert out.splitlines()[-2:] == [
        "    validation 1, at update 500",
        "  ... and so on, without an end",
    ]


def test_an_epoch_of_unknown_length_has_no_numbers(capsys):
    _, out = printed(capsys, "--total-steps 3 --print-frequency 5")
    assert "not known without batches_per_epoch: updates, micro-batches, logs" in out
    assert out.count("    all batches of the epoch\n") == 3


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ("--total-steps 4 --valid-frequency 5", "valid_frequency"),
        ("--total-steps 4 --chkpt-frequency 5", "chkpt_frequency"),
        ("--total-steps 4 --batches-per-epoch 5 --print-frequency 21", "print_frequency"),
        ("--total-steps 4 --valid-frequency 1 --early-stop-cycles 4", "early_stop_cycles"),
        ("--batches-per-epoch 3 --accumulation-steps 4", "accumulation_steps"),
    ],
)
def test_what_never_happens_is_said(capsys, arguments, name):
    status, out = printed(capsys, arguments)
    assert status == 1
    assert [line.split("=")[0] for line in out.splitlines() if line.startswith("warning")] == [
        f"warning: {name}"
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        "--total-steps 5 --valid-frequency 5 --chkpt-frequency 5",
        "--total-steps 4 --batches-per-epoch 5 --print-frequency 20",
        "--total-steps 4 --valid-frequency 1 --early-stop-cycles 3",
        "--valid-frequency 1 --early-stop-cycles 30 --chkpt-frequency 10",
        "--batches-per-epoch 4 --accumulation-steps 4",
        "--unit iteration --batches-per-epoch 3 --accumulation-steps 4",
    ],
)
def test_what_happens_once_is_no_reason_to_warn(capsys, arguments):
    status, out = printed(capsys, arguments)
    assert status == 0
    assert "warning" not in out


def test_json_holds_totals_and_events(capsys):
    status, out = printed(
        capsys, "--total-steps 1 --batches-per-epoch 3 --valid-frequency 2 --json"
    )
    found = json.loads(out)
    assert status == 1
    assert found["totals"] == {
        "epochs": 1,
        "updates": 3,
        "micro_batches": 3,
        "validations": 0,
        "checkpoints": 1,
        "logs": 0,
    }
    assert len(found["warnings"]) == 1
    assert found["whole"] is True
    assert [line["event"]["type"] for line in found["first"]] == [
        *("EpochStart", "Batches", "EpochEnd", "Checkpoint", "Stop")
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--total-steps 0", "total_steps: received 0; expected at least 1"),
        ("--batches-per-epoch 0", "batches_per_epoch: received 0"),
        ("--early-stop-cycles 2", "early_stop_cycles: received 2 without a valid_frequency"),
        ("--total-steps 9999999999", "total_steps: received 9999999999; expected at most"),
        ("--lines 0", "lines: received 0; expected at least 1"),
    ],
)
def test_a_wrong_number_is_a_wrong_call(capsys, arguments, message):
    assert main(["plan", *arguments.split()]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith(f"helios plan: {message}")
