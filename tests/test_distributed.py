"""FixedClassifier trained by two processes, against one that sees the whole batch."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from fixclf_infer.nn import FixedClassifier

STEPS, BATCH = 3, 6


def network(alpha: float = 5.0) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), FixedClassifier(16, 60, alpha=alpha))


def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(2)
    return [
        (
            torch.randn(BATCH, 8, generator=generator),
            torch.randint(60, (BATCH,), generator=generator),
        )
        for _ in range(STEPS)
    ]


def train(model: nn.Module, rank: int = 0, world: int = 1) -> list[float]:
    optimiser = torch.optim.SGD(model.parameters(), 0.1)
    losses = []
    for x, y in batches():
        loss = nn.functional.cross_entropy(model(x[rank::world]), y[rank::world])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses


def with_ddp(rank: int) -> nn.Module:
    return nn.parallel.DistributedDataParallel(network())


def with_fsdp2(rank: int, alpha: float = 5.0) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    mesh = dist.device_mesh.init_device_mesh("cpu", (2,))
    model = network(alpha)
    for layer in (model[0], model[2]):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def with_fsdp2_from_meta(rank: int, *, left_out: str = "", broadcast: bool = False) -> nn.Module:
    """The bits must follow a module that never saw a device, and its α those of the checkpoint."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
    from torch.distributed.fsdp import fully_shard

    mesh = dist.device_mesh.init_device_mesh("cpu", (2,))
    with torch.device("meta"):
        model = network(alpha=1.0)
    fully_shard(model, mesh=mesh)
    model.to_empty(device="cpu")
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=broadcast)
    state = {k: v for k, v in network().state_dict().items() if k != left_out}
    set_model_state_dict(model, {} if broadcast and rank else state, options=options)
    return model


def with_fsdp2_from_rank_0(rank: int) -> nn.Module:
    return with_fsdp2_from_meta(rank, broadcast=True)


def with_fsdp2_from_an_older_checkpoint(rank: int) -> nn.Module:
    """Which has α alone."""
    return with_fsdp2_from_meta(rank, left_out="2.alpha_spread")


def with_fsdp2_from_shards(rank: int) -> nn.Module:
    from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict

    saved, loaded = with_fsdp2(rank), with_fsdp2(rank, alpha=1.0)
    state = get_model_state_dict(saved)
    assert state["2.alpha"].full_tensor().tolist() == [5.0]
    set_model_state_dict(loaded, state)
    return loaded


def with_fsdp1(rank: int) -> nn.Module:
    from torch.distributed.fsdp import FullyShardedDataParallel

    return FullyShardedDataParallel(network(), device_id=torch.device("cpu"))


def with_fsdp1_original_parameters(rank: int) -> nn.Module:
    from torch.distributed.fsdp import FullyShardedDataParallel

    return FullyShardedDataParallel(network(), device_id=torch.device("cpu"), use_orig_params=True)


def with_fsdp1_from_shards(rank: int) -> nn.Module:
    from torch.distributed.fsdp import FullyShardedDataParallel as Fsdp
    from torch.distributed.fsdp import StateDictType

    saved, loaded = (Fsdp(network(a), device_id=torch.device("cpu")) for a in (5.0, 1.0))
    for kind in (StateDictType.SHARDED_STATE_DICT, StateDictType.FULL_STATE_DICT):
        with Fsdp.state_dict_type(saved, kind), Fsdp.state_dict_type(loaded, kind):
            loaded.load_state_dict(saved.state_dict())
        saved, loaded = loaded, Fsdp(network(1.0), device_id=torch.device("cpu"))
    return saved


WRAPPERS = (
    *(with_ddp, with_fsdp1, with_fsdp1_original_parameters, with_fsdp1_from_shards, with_fsdp2),
    *(with_fsdp2_from_meta, with_fsdp2_from_rank_0, with_fsdp2_from_an_older_checkpoint),
    with_fsdp2_from_shards,
)


def checkpoint(rank: int, folder: Path) -> tuple[bool, str]:
    """Saves one kind of codebook and loads it into another."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict

    saved = nn.Sequential(FixedClassifier(16, 100, codebook="search", alpha=3.0))
    dcp.save({"model": get_model_state_dict(saved)}, checkpoint_id=folder / "checkpoint")
    loaded = nn.Sequential(FixedClassifier(16, 100, codebook="orthonormal"))
    state = {"model": get_model_state_dict(loaded)}
    dcp.load(state, checkpoint_id=folder / "checkpoint")
    set_model_state_dict(loaded, state["model"])
    x = torch.randn(2, 16)
    return torch.equal(saved(x), loaded(x)), loaded[0].codebook.kind


def run(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    results: dict[str, Any] = {}
    for wrap in WRAPPERS:
        try:
            model = wrap(rank)
            results[wrap.__name__] = train(model, rank, 2)
        except Exception as error:
            results[wrap.__name__] = repr(error)
        dist.barrier()
    try:
        results["checkpoint"] = checkpoint(rank, Path(folder))
    except Exception as error:
        results["checkpoint"] = repr(error)
    torch.save(results, f"{folder}/{rank}.pt")
    dist.barrier()  # a process that goes first would cut off what the other still sends
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """One start of the processes serves every test."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(run, (str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("wrap", WRAPPERS, ids=[w.__name__ for w in WRAPPERS])
def test_training(results: list[dict[str, Any]], wrap: Any) -> None:
    got = [each[wrap.__name__] for each in results]
    assert all(isinstance(losses, list) for losses in got), got
    want = torch.tensor(train(copy.deepcopy(network())))
    # Each process has half of the batch, the mean of whose losses is that of the whole.
    torch.testing.assert_close(torch.tensor(got).mean(0), want, rtol=1e-4, atol=1e-5)
    assert want[-1] != want[0]


def test_distributed_checkpoint(results: list[dict[str, Any]]) -> None:
    assert [each["checkpoint"] for each in results] == [(True, "search")] * 2
