"""Ranks of a job: lookup, gathering of results, and one way for errors to reach every rank.

Each rank runs the same program with the same arguments on its shard of the data and gathers the
results of all ranks, so that all go on with the same values. Only rank 0 writes and prints.

An error of one rank is published in the store of the job, beside the collectives: the others find
it there when their next collective fails. In a collective, it would have to wait for its turn.

Torch is imported lazily, since the command line reads its rank before importing torch.
"""

from __future__ import annotations

import gc
import math
import os
import pickle
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from mae.errors import ConfigError, MaeError, RankError, Stopped

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed.distributed_c10d import ProcessGroup, Store

    from mae.parallel.watchdog import Watchdog

T = TypeVar("T")

TIMEOUT_S = 1800.0
"""Default timeout of a gather in seconds."""
_RUN_ID = "TORCHELASTIC_RUN_ID"
_ADDRESS, _PORT = "MASTER_ADDR", "MASTER_PORT"
# World size, rank, rank within the machine.
_TORCHRUN = ("WORLD_SIZE", "RANK", "LOCAL_RANK")
_SRUN = ("SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
SLURM_TASK = "MAE_SLURM"
"""Variable that makes each task of srun a rank. SLURM's own variables do not: they are also set
where nothing was started by srun (an interactive shell, a batch script), and for tasks that are
jobs of their own."""


class ProcessInfo(NamedTuple):
    """Rank of a process and number of processes, as torchrun numbers them."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    """Rank within the machine, and the index of its GPU."""
    local_world_size: int = 1
    """Number of processes on this machine."""

    @property
    def is_main_process(self) -> bool:
        """Whether this is rank 0, the only one that writes and prints."""
        return self.rank == 0

    def shard(self, items: Sequence[T]) -> Sequence[T]:
        """Return the items of this rank: every `world_size`-th, starting at its rank."""
        return items[self.rank :: self.world_size]


def this_process() -> ProcessInfo:
    """Read the rank of this process from the environment variables set by torchrun or srun.

    Raises:
        ConfigError: if there are several processes and a variable is missing or malformed.
    """
    names = _SRUN if is_slurm_task() else _TORCHRUN
    world, *ranks = names
    if os.environ.get(world, "") in ("", "1"):
        return ProcessInfo()
    values = {name: os.environ.get(name, "") for name in (*names, _PORT, _ADDRESS)}
    numbers = {name: int(text) for name, text in values.items() if text.isdecimal()}
    world_size = numbers.get(world, 0)
    for name, text in values.items():
        wrong = not text if name == _ADDRESS else name not in numbers
        if wrong or (name in ranks and numbers[name] >= world_size):
            by, instead = "torchrun", f"use --ranks or torchrun, or unset {world}"
            if is_slurm_task():
                by, instead = "srun and --slurm", f"use --slurm, or unset {SLURM_TASK}"
            raise ConfigError(
                f"ranks: {world} is {values[world]!r}, but got {name}={text}, expected "
                f"what {by} set{'s' * (by == 'torchrun')}; {instead}"
            )
    rank, local_rank = (numbers[name] for name in ranks)
    if is_slurm_task():
        nodes = os.environ.get("SLURM_NNODES", "")
        local_world_size = math.ceil(world_size / max(1, int(nodes) if nodes.isdecimal() else 1))
    else:
        local_world_size = int(os.environ.get("LOCAL_WORLD_SIZE") or world_size)
    return ProcessInfo(rank, world_size, local_rank, local_world_size)


def is_slurm_task() -> bool:
    """Return whether srun started this process as a rank, see `SLURM_TASK`."""
    return bool(os.environ.get(SLURM_TASK))


def has_launcher() -> bool:
    """Return whether `--ranks` or torchrun started this process."""
    return _RUN_ID in os.environ


def has_own_launcher() -> bool:
    """Return whether `--ranks` started this process."""
    return os.environ.get(_RUN_ID, "").startswith("mae-")


def require_single_process(what: str, *, ranks: int = 1) -> None:
    """Raise a ConfigError if a verb that takes one process is started as, or asked for, several."""
    if (count := max(ranks, this_process().world_size)) > 1:
        raise ConfigError(
            f"ranks: {what} takes one process, got {count}; start it without --ranks and torchrun"
        )


class Communicator:
    """The processes of a job, synchronised at each collective.

    If one rank fails, its error is raised on every rank, so that none hangs.

    Args:
        process: this one.
        store: the key-value store of the job; none in a job of one process.
        watchdog: knows which ranks are alive; none in a job of one process.
        group: process group of its collectives; none: the one of the job.
    """

    def __init__(
        self,
        process: ProcessInfo,
        store: Store | None = None,
        watchdog: Watchdog | None = None,
        group: ProcessGroup | None = None,
    ) -> None:
        self.process = process
        self.is_main_process = process.is_main_process
        self._store = store
        self._watchdog = watchdog
        self._group = group
        self._closed = False

    def all_gather(self, mine: T) -> list[T]:
        """Gather the results of all processes, in rank order, in every process.

        Args:
            mine: picklable result of this process, of any size; an error is raised in all.

        Raises:
            MaeError: the error of the lowest rank that has one.
            RankError: if a process is lost.
        """
        results: list[Any] = [mine] * self.process.world_size
        if self._store is not None:
            import torch.distributed as dist

            with self.failures_of_others():
                # Pickle is safe here: the other processes run the same program for the same user.
                dist.all_gather_object(results, mine, group=self._group)
        for each in results:
            if isinstance(each, MaeError):
                self._closed = True
                raise each
        return results

    def on_main(self, make: Callable[[], T]) -> T:
        """Call a function on rank 0 alone; return its picklable result on every rank.

        Raises:
            MaeError: that of the function, on every rank.
            RankError: if a process is lost.
        """
        if self.process.world_size == 1:
            return make()
        mine: Any = None
        if self.is_main_process:
            try:
                mine = make()
            except MaeError as error:
                mine = error
        result: T = self.all_gather(mine)[0]
        return result

    def all_reduce(self, values: Tensor) -> None:
        """Add up a tensor of the same shape over all ranks, in place.

        Raises:
            MaeError: as `failures_of_others`.
        """
        if self._store is not None:
            import torch.distributed as dist

            with self.failures_of_others():
                dist.all_reduce(values, group=self._group)

    def step_done(self, step: int) -> None:
        """Note that a step of training is done; from now on, a rank without steps counts as hung.

        A hung job ends on every rank, with the stacks of all and the name of the rank that hung.
        """
        if self._watchdog is not None:
            self._watchdog.advance(step)

    def steps_done(self) -> None:
        """Note that training is over: what follows may take long without steps."""
        if self._watchdog is not None:
            self._watchdog.pause()

    @contextmanager
    def failures_of_others(self) -> Iterator[None]:
        """Around a collective: turn its failure into the error that made another rank leave.

        Raises:
            MaeError or Stopped: the error that another rank has published.
            RankError: if a process was lost without one.
        """
        try:
            yield
        except RuntimeError as error:
            if not _is_of_collectives(error):
                raise
            self._closed = True
            raise self._published() or self._lost(error) from error

    def leave(self, error: MaeError | Stopped) -> MaeError | Stopped:
        """Publish why this rank leaves the job; return the error to raise.

        A rank that is asked to stop because another one has failed raises the other's error.
        """
        # What its frames hold, such as a sharded model, keeps connections open on which other ranks
        # wait, and threads of gloo, which abort the process at exit.
        cause: BaseException | None = error
        while cause is not None:
            traceback.clear_frames(cause.__traceback__)
            cause = cause.__cause__ or cause.__context__
        if self._closed or self._store is None:
            return error
        self._closed = True
        found = self._published()
        # Without a store, the others find a lost connection.
        with suppress(RuntimeError):
            self._store.set(f"error/{self.process.rank}", pickle.dumps(error))  # type: ignore[arg-type]
        return found if isinstance(error, Stopped) and found is not None else error

    def close(self) -> None:
        """Synchronise a last time, after the work of this rank is done.

        Raises:
            MaeError: as `all_gather`.
        """
        if not self._closed:
            self.all_gather(None)
        self._closed = True

    def _lost(self, error: RuntimeError) -> RankError:
        """Return the error for a failed collective, naming the lost rank if it is known."""
        return _lost(error, [] if self._watchdog is None else self._watchdog.missing())

    def _published(self) -> MaeError | Stopped | None:
        """Return the error of the lowest rank that has published one."""
        assert self._store is not None
        try:
            for rank in range(self.process.world_size):
                if self._store.check([key := f"error/{rank}"]):
                    error: MaeError | Stopped = pickle.loads(self._store.get(key))
                    return error
        except RuntimeError:  # the process that held the store is gone
            pass
        return None


SINGLE_PROCESS = Communicator(ProcessInfo())
"""The communicator of a job of one process."""


@contextmanager
def open_communicator(*, timeout_s: float = TIMEOUT_S) -> Iterator[Communicator]:
    """Initialise the process group of a job started by torchrun; do nothing for one process.

    Objects in host memory are gathered by gloo, also where there are GPUs; NCCL is initialised
    for tensors on GPUs. A process may open it several times, one after the other.

    Args:
        timeout_s: seconds to wait for the other processes, here and at each collective.

    Raises:
        MaeError or Stopped: that of any process inside the block, in all of them.
        RankError: if a process is lost.
    """
    process = this_process()
    if process.world_size == 1:
        yield SINGLE_PROCESS
        return
    import torch
    import torch.distributed as dist

    # If this module is first imported while a group exists (torch._dynamo does that), its default
    # arguments keep the group alive, and with it gloo threads that abort the process at exit.
    import torch.distributed.nn.functional
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    from mae.parallel.launch import end_with_parent
    from mae.parallel.watchdog import Watchdog, hang_timeout_s

    if has_launcher():  # the command has done it; a script of the user's under torchrun has not
        end_with_parent()
    hang_s = hang_timeout_s()
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    rank, world_size, timeout = process.rank, process.world_size, timedelta(seconds=timeout_s)
    try:
        store, _, _ = next(rendezvous("env://", rank, world_size, timeout=timeout))
        store.set_timeout(timeout)
        # The keys of an earlier opening are still there.
        store = PrefixStore(f"mae/{store.add(f'mae/opened/{rank}', 1)}", store)
        dist.init_process_group(
            backend, store=store, rank=rank, world_size=world_size, timeout=timeout
        )
    except RuntimeError as error:
        raise _port_in_use(error) or _lost(error) from error
    watchdog = Watchdog(rank, world_size, store.clone(), timeout_s=hang_s)
    ranks = Communicator(process, PrefixStore("communicator", store), watchdog)
    try:
        with watchdog:
            yield ranks
            ranks.close()
    except (MaeError, Stopped) as error:
        if (reason := ranks.leave(error)) is not error:
            raise reason from error
        raise
    finally:
        gc.collect()  # a model that FSDP2 has sharded is in cycles
        dist.destroy_process_group()


def require_agreement(
    communicator: Communicator,
    facts: Mapping[str, object | Callable[[], object]],
    *,
    folder: Path | None = None,
) -> None:
    """Raise on every rank if the ranks of a job were not started alike.

    Jobs call it before they write anything. With one process, it does nothing.

    Args:
        communicator: of the job.
        facts: values that must be equal on all ranks, by name, compared as text; or functions
            that compute them, not called for one process. The versions of mae and torch are
            compared as well.
        folder: where rank 0 writes, for all to see; created if needed.

    Raises:
        ConfigError: names the fact, the first rank that differs from rank 0, and both values.
    """
    if communicator.process.world_size == 1:
        return
    from mae.parallel import agreement

    agreement.require_equal(communicator.all_gather(agreement.values_of(facts)))
    if folder is not None:
        marker = folder / communicator.on_main(lambda: agreement.write_marker(folder))
        seen = communicator.all_gather(agreement.appears(marker))
        if communicator.is_main_process:
            marker.unlink(missing_ok=True)
        agreement.require_seen(folder, seen)


def _is_of_collectives(error: RuntimeError) -> bool:
    """Return whether an error comes from torch.distributed; torch raises plain ones for gloo."""
    from torch.distributed import DistError

    return isinstance(error, DistError) or "gloo" in f"{error}"


def _port_in_use(error: RuntimeError) -> ConfigError | None:
    if "EADDRINUSE" not in f"{error}":
        return None
    address = ":".join(os.environ[name] for name in (_ADDRESS, _PORT))
    return ConfigError(
        f"ranks: {address} is in use, by another job? Set another MASTER_PORT (torchrun: "
        "--master-port), or let torchrun --standalone or --ranks find a free one"
    )


def _lost(error: RuntimeError, missing: Sequence[int] = ()) -> RankError:
    reason = f"{error}".partition("\n")[0]
    who = f"another process of this job ended or did not answer ({reason})"
    if missing:
        who = f"rank {', '.join(map(str, missing))} ended or did not answer"
    return RankError(f"ranks: {who}; see its messages, and start all of them again")
