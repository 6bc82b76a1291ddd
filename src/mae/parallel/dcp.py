"""Files of torch.distributed.checkpoint (DCP), planned and written by our own collectives.

The files are those of `dcp.save`, and `dcp.load` reads them. Its planner, writer and reader are
called one by one: a rank that cannot write must not leave the others in a collective, a save in a
thread has collectives of its own, and a load needs none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    ReadItem,
    SavePlan,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from mae.parallel.processes import Communicator
from mae.parallel.shards import Shard


class Plan(NamedTuple):
    """What this rank writes, and the metadata of what all ranks write."""

    own: SavePlan
    metadata: Metadata
    planner: DefaultSavePlanner
    rank: int

    @property
    def file(self) -> str:
        """Name of the file of this rank."""
        return f"__{self.rank}_0.distcp"


def plan_save(shards: Mapping[str, Shard], ranks: Communicator) -> Plan:
    """Decide which rank writes what; collective, and writes nothing yet."""
    planner = _SavePlanner(shards)
    # Each rank computes the plan of all of them: it depends on what they gathered alone.
    plans, metadata = planner.create_global_plan(ranks.all_gather(planner.create_local_plan()))
    plans = _Writer("").prepare_global_plan(plans)
    rank = ranks.process.rank
    return Plan(planner.finish_plan(plans[rank]), metadata, planner, rank)


def write_shards(folder: Path, plan: Plan) -> list[Any]:
    """Write and fsync the file of this rank; return what `write_metadata` needs.

    Raises:
        OSError or RuntimeError: if it cannot be written.
    """
    results: list[Any] = _Writer(folder).write_data(plan.own, plan.planner).wait()
    return results


def write_metadata(folder: Path, plan: Plan, results: list[list[Any]]) -> None:
    """Write and fsync `.metadata`, on rank 0, after all ranks have written their files."""
    _Writer(folder).finish(plan.metadata, results)


def files_read(metadata: Metadata, into: Mapping[str, Shard]) -> set[str]:
    """Return the names of the files that `read_shards` reads."""
    indices = (item.storage_index for item in _read_items(metadata, into))
    return {metadata.storage_data[index].relative_path for index in indices}


def read_shards(folder: Path, metadata: Metadata, into: Mapping[str, Shard]) -> None:
    """Read tensors, each of the same shape and type, in place; without communication.

    Args:
        folder: of the files.
        metadata: by `dcp_metadata.read_metadata`.
        into: the parts to read; names that are not in the metadata are an error.
    """
    reader = FileSystemReader(folder)
    reader.set_up_storage_reader(metadata, is_coordinator=True)
    reader.read_data(LoadPlan(list(_read_items(metadata, into))), _LoadPlanner(into)).wait()


def _read_items(metadata: Metadata, into: Mapping[str, Shard]) -> Iterable[ReadItem]:
    for name, shard in into.items():
        stored: Any = metadata.state_dict_metadata[name]
        if shard.local.numel():
            yield from create_read_items_for_chunk_list(name, stored, [_chunk(shard)])


class _Writer(FileSystemWriter):
    def storage_meta(self) -> None:
        """Write neither the path of the temporary folder nor a random id."""


class _SavePlanner(DefaultSavePlanner):
    """Plan to write shards; tensors that several ranks hold are divided among them."""

    def __init__(self, shards: Mapping[str, Shard]) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self._shards = shards

    def create_local_plan(self) -> SavePlan:
        self.plan = SavePlan(
            [
                _write_item(name, shard)
                for name, shard in self._shards.items()
                # With more ranks than rows, some ranks have none.
                if shard.local.numel() or not shard.size.numel()
            ]
        )
        return self.plan

    def lookup_object(self, index: MetadataIndex) -> Tensor:
        return self._shards[index.fqn].local


class _LoadPlanner(DefaultLoadPlanner):
    def __init__(self, shards: Mapping[str, Shard]) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self._shards = shards

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        return self._shards[index.fqn].local


def _write_item(name: str, shard: Shard) -> WriteItem:
    data = TensorWriteData(
        chunk=_chunk(shard), properties=TensorProperties(shard.local.dtype), size=shard.size
    )
    return WriteItem(MetadataIndex(name, shard.offsets), WriteItemType.SHARD, tensor_data=data)


def _chunk(shard: Shard) -> ChunkStorageMetadata:
    return ChunkStorageMetadata(torch.Size(shard.offsets), shard.local.shape)
