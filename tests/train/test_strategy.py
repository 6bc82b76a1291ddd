"""Ranks divide the parameters where they are asked to, or where the whole state does not fit."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mae.config.run import FinetuneConfig, PretrainConfig
from mae.errors import ConfigError
from mae.model.costs import count_parameters
from mae.parallel.processes import ProcessInfo
from mae.planning import estimate
from mae.planning.estimate import LEFT_FREE, Estimate
from mae.planning.hardware import this_machine
from mae.train import strategy
from mae.train.strategy import with_strategy
from tests.model.tiny import tiny_config

AUTO = PretrainConfig(model=tiny_config(), batch=8, device="cpu", precision="float32")
TWO = ProcessInfo(0, 2, 0, 2)


def chosen(config: PretrainConfig, process: ProcessInfo = TWO) -> tuple[str, list[str]]:
    said: list[str] = []
    return with_strategy(config, process, log=said.append).strategy, said


def test_auto_divides_what_does_not_fit_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    assert chosen(AUTO) == ("ddp", [])
    machine = this_machine("cpu")._replace(ranks=2)
    trained = 10_000
    state = Estimate(replace(AUTO, strategy="ddp"), machine, 8, trained, 0).state_bytes
    monkeypatch.setattr(estimate, "count_parameters", lambda model, **_: (trained, 0))
    # Two ranks of this machine, on which the state alone would fill the memory.
    small = machine._replace(memory_bytes=2 * state)
    monkeypatch.setattr(strategy, "this_machine", lambda device: small)

    found, (line,) = chosen(AUTO)

    assert found == "fsdp" and line.startswith("strategy: fsdp, since a state of ")
    assert chosen(replace(AUTO, strategy="ddp")) == ("ddp", [])
    assert chosen(replace(AUTO, precision="fp16")) == ("ddp", [])


def test_auto_counts_no_decoder_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    # Room for what fine-tuning the encoder takes, and not for a decoder beside it.
    tuned = FinetuneConfig(model=AUTO.model, batch=8, device="cpu", precision="float32")
    machine = this_machine("cpu")._replace(ranks=2)
    encoder = count_parameters(AUTO.model, decoder=False)
    need = Estimate(replace(tuned, strategy="ddp"), machine, 8, *encoder)
    room = 2 * (need.state_bytes + need.batch_bytes + need.image_bytes) / (1 - LEFT_FREE) + 100
    small = machine._replace(memory_bytes=room)
    monkeypatch.setattr(strategy, "this_machine", lambda device: small)

    assert with_strategy(tuned, TWO, log=pytest.fail).strategy == "ddp"


def test_one_process_has_no_strategy() -> None:
    alone = replace(AUTO, strategy="fsdp", precision="fp16", compile=True)

    assert chosen(alone, ProcessInfo()) == ("fsdp", [])


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"precision": "fp16"}, "^precision: fp16 .*; use bf16, or --strategy ddp$"),
        ({"compile": True}, "^compile: .*; drop --compile, or use --strategy ddp$"),
    ],
)
def test_what_ranks_with_parts_cannot_train_is_refused(
    fields: dict[str, object], line: str
) -> None:
    with pytest.raises(ConfigError, match=line):
        chosen(replace(AUTO, strategy="fsdp", **fields))
