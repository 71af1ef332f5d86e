"""Training in several processes, called ranks: how they start, what they tell each other, and how they end together.

Each rank has a device of its own, computes the gradients of its share of the batches of an update, and makes the same
update of the same weights. torchrun starts the ranks, on one machine or on several; with --devices, the process that
the user starts is rank 0, and starts the others on the same machine. Ranks talk to each other through PyTorch's
distributed package: tensors go through a process group, news of failures through a key-value store.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from itertools import accumulate
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mtkit.errors import MtkitError, StoppedError, is_out_of_memory, say_only_errors, show_progress
from mtkit.files import Stop
from mtkit.models.registry import pick_device

GONE = "start the same command again: it goes on from the newest checkpoint, with as many devices or another number"

AGENT_STORE = "TORCHELASTIC_USE_AGENT_STORE"  # a variable that is "True" if torchrun itself hosts the key-value store
JOIN_TIMEOUT = timedelta(minutes=5)  # for reaching the key-value store, whose host may still be importing PyTorch
# `Watch` ends a rank that waits for a lost rank, so operations of the process group need no time limit of their own.
GROUP_TIMEOUT = timedelta(days=30)

if TYPE_CHECKING:  # some builds of PyTorch lack them
    from torch.distributed.distributed_c10d import Store, Work

T = TypeVar("T")


class EndedElsewhereError(MtkitError):
    """Another rank has failed and shows its error, so this rank ends without a message."""


# Starting the ranks.


@dataclass(frozen=True)
class Place:
    """The rank of a process and the address of the key-value store, as in the environment variables of torchrun."""

    rank: int  # from 0
    count: int  # number of ranks
    local_rank: int  # from 0, among the ranks on this machine
    local_count: int  # number of ranks on this machine
    address: str  # of the machine with the key-value store
    port: int

    @staticmethod
    def from_environment() -> "Place":
        """Reads rank, number of ranks and address from the environment variables that torchrun sets, such as RANK.

        Raises MtkitError if a variable is missing, or if a variable other than the address is not a number.
        """
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
        found = {name: os.environ.get(name, "") for name in names}
        wrong = [name for name in names if not (found[name] if name == "MASTER_ADDR" else found[name].isdigit())]
        if wrong:
            raise MtkitError(
                f"WORLD_SIZE is {found['WORLD_SIZE']} in the environment, but {wrong[0]} is "
                f"{found[wrong[0]] or 'missing'}; start several processes with torchrun, or with --devices"
            )
        rank, count, local_rank, local_count = (int(found[name]) for name in names[:4])
        return Place(rank, count, local_rank, local_count, found["MASTER_ADDR"], int(found["MASTER_PORT"]))

    def variables(self) -> dict[str, str]:
        """Returns the environment variables, by name, from which `from_environment` reads this place."""
        return {
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.count),
            "LOCAL_RANK": str(self.local_rank),
            "LOCAL_WORLD_SIZE": str(self.local_count),
            "MASTER_ADDR": self.address,
            "MASTER_PORT": str(self.port),
        }


@contextmanager
def started(device: str, devices: int | None, arguments: Sequence[str]) -> Iterator["Ranks"]:
    """Context manager that connects the ranks of a training run, gives them as a `Ranks`, and ends them together.

    If torchrun has started this process, the ranks are the processes that torchrun has started. Otherwise, if `devices`
    is above 1, this process becomes rank 0 and starts further ranks on this machine, as `mtkit` with `arguments`.
    `device` is the setting `device`. If the block raises an exception in any rank, all ranks end, and the rank that
    failed first shows the error. Raises MtkitError if there are not enough devices, or if `devices` is not the number
    of processes that torchrun has started.
    """
    if not dist.is_available() and (devices or 1) > 1:
        raise MtkitError("this PyTorch was built without its distributed package; it trains on one device only")
    if "WORLD_SIZE" in os.environ:
        place = Place.from_environment()
        if devices not in (None, place.count):
            raise MtkitError(f"--devices {devices}: torchrun has started {place.count}; leave --devices out")
        if place.count > 1:
            with _joined(device, place, None, []) as ranks:
                yield ranks
            return
    elif devices is not None and devices > 1:
        with _launched(device, devices, arguments) as ranks:
            yield ranks
        return
    yield ALONE


@contextmanager
def _launched(device: str, devices: int, arguments: Sequence[str]) -> Iterator["Ranks"]:
    """Context manager that starts `devices` - 1 further ranks on this machine; this process becomes rank 0.

    Each further rank is a process of the command `mtkit` with `arguments`. `device` is the setting `device`.
    """
    _require_devices(device, devices)
    if sys.platform == "linux":
        # The host name of this machine may resolve to an address that the machine cannot reach.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    if "OMP_NUM_THREADS" not in os.environ:
        threads = max(1, torch.get_num_threads() // devices)
        torch.set_num_threads(threads)
        os.environ["OMP_NUM_THREADS"] = str(threads)
    store = _tcp_store("127.0.0.1", 0, is_first=True)
    processes: list[subprocess.Popen[bytes]] = []
    patience = 0.0
    try:
        places = [Place(rank, devices, rank, devices, "127.0.0.1", store.port) for rank in range(devices)]
        for place in places[1:]:
            # Each in a session of its own, so that Ctrl-C reaches only rank 0, which tells the other ranks.
            process = subprocess.Popen(
                [sys.executable, "-m", "mtkit", *arguments],
                stdin=subprocess.DEVNULL,
                env={**os.environ, **place.variables()},
                start_new_session=True,
            )
            processes.append(process)
        with _joined(device, places[0], store, processes) as ranks:
            yield ranks
        patience = LEAVE_SECONDS
    except EndedElsewhereError:
        patience = GRACE_SECONDS  # the rank that failed is about to show its error
        raise
    finally:
        _end(processes, patience)


def _end(processes: Sequence[subprocess.Popen[bytes]], patience: float) -> None:
    """Wait up to `patience` seconds until the processes have ended, then kill the processes that still run."""
    until = time.monotonic() + patience
    for process in processes:
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, until - time.monotonic()))
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.wait()


def _require_devices(name: str, count: int) -> None:
    """Raise MtkitError if this machine has fewer than `count` devices of the kind that the setting `name` selects."""
    device = pick_device(name)
    if device.type == "cpu":
        return
    found = torch.cuda.device_count() if device.type == "cuda" else 1
    if found < count:
        raise MtkitError(f"{count} devices are asked for, and this machine has {found} of type {device.type}")


@contextmanager
def _joined(
    device: str, place: Place, store: "Store | None", processes: Sequence["subprocess.Popen[bytes]"]
) -> Iterator["Ranks"]:
    """Context manager that connects this process to the other ranks; gives a `Ranks`.

    `store` is the key-value store if this process has opened it already, else `None`. `processes` are the ranks that
    this process has started, from rank 1 on.
    """
    if place.rank:
        show_progress(False)
        say_only_errors()
    _require_devices(device, place.local_count)
    kind = pick_device(device).type
    if kind == "cuda":
        torch.cuda.set_device(place.local_rank)
    has_store = place.rank == 0 and os.environ.get(AGENT_STORE) != "True"
    store = store or _tcp_store(place.address, place.port, is_first=has_store)
    # The watch and the process group get clients of their own: an operation that waits blocks all others of its client.
    clients = [_tcp_store(place.address, place.port) for _ in range(2)]
    watch = Watch(_part_of(clients[0]), place, processes)
    watch.start()
    ranks = Ranks(place, _part_of(store), watch)
    try:
        group = _part_of(clients[1], "group")
        backend = "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo"
        with ranks.talking():
            dist.init_process_group(
                backend, store=group, rank=place.rank, world_size=place.count, timeout=GROUP_TIMEOUT
            )
        yield ranks
    except BaseException as error:
        if not ranks.claim(error):
            raise StoppedError("", error.code) if isinstance(error, StoppedError) else EndedElsewhereError from error
        raise
    else:
        ranks.part()
    finally:
        watch.stop()


def _tcp_store(address: str, port: int, is_first: bool = False) -> Any:
    """Returns a client of the key-value store; with `is_first`, this process also hosts the store."""
    return dist.TCPStore(  # type: ignore[attr-defined]
        address, port, is_master=is_first, timeout=JOIN_TIMEOUT, wait_for_workers=False, multi_tenant=True
    )


def _part_of(store: "Store", name: str = "") -> "Store":
    """Returns a view of the key-value store in which all keys have the prefix `name`.

    The prefix also contains the number of times that torchrun has restarted the ranks after a failure, so that the view
    is empty after each restart.
    """
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    part: Store = dist.PrefixStore(f"mtkit/{attempt}/{name}", store)  # type: ignore[attr-defined]
    return part


# Watching each other.

POLL_SECONDS = 0.25  # the time between two looks at the store
SILENT_POLLS = 160  # a rank counts as lost after this many looks without a sign of life from it: 40 seconds
NEWS_SECONDS = 3.0  # how long to wait for news of a failed rank after an operation has failed, perhaps because of it
ALIKE_SECONDS = 2.0  # how long a failed rank waits for rank 0, which may fail in the same way and show the error
SHOW_SECONDS = 1.0  # how long the other ranks wait before they end, so that the failed rank shows its error first
GRACE_SECONDS = 10.0  # how long a rank may take to end by itself after another rank has failed
LEAVE_SECONDS = 30.0  # how long all ranks except rank 0 may take to end after training

FAILED = "failed"  # a key in the store; its value names the rank that failed first, and its machine


class Watch(threading.Thread):
    """A thread that tells the other ranks that this rank is alive, and notices if another rank has failed or is lost.

    The main thread may be waiting for a rank that is gone, and some operations of PyTorch never return then. So if the
    main thread does not end within GRACE_SECONDS after a failure, this thread ends the process.
    """

    def __init__(self, store: "Store", place: Place, processes: Sequence["subprocess.Popen[bytes]"]) -> None:
        super().__init__(name="watch", daemon=True)
        self.failure = ""  # an error that this rank must show; empty if another rank shows its own
        self.has_failed = threading.Event()  # set when training cannot go on; `failure` has its value by then
        self._store = store
        self._place = place
        self._processes = processes
        self._over = threading.Event()
        self._heard: dict[int, tuple[bytes, int]] = {}  # by rank: the last sign of life, and the look that found it

    def run(self) -> None:
        """Look at the store every POLL_SECONDS, until training is over or a rank has failed."""
        looks, failure = 0, None
        while failure is None:
            if self._over.wait(POLL_SECONDS):
                return
            looks += 1
            try:
                failure = self._look(looks)
            except RuntimeError:  # the process that hosts the store is gone
                failure = ""
        self.failure = failure
        self.has_failed.set()
        if not self._over.wait(GRACE_SECONDS):
            if failure:
                with suppress(OSError):
                    os.write(2, f"mtkit: error: {failure}\n".encode())
            os._exit(1)

    def _look(self, looks: int) -> str | None:
        """Record in the store that this rank is alive, and check the other ranks; returns an error message or `None`.

        Returns the message that this rank must show, "" if another rank shows its error, or `None` if no rank has
        failed. `looks` is the number of calls of this method so far, including this call. The number is stored as a
        sign of life of this rank.
        """
        place, store = self._place, self._store
        store.set(f"alive/{place.rank}", str(looks))
        if store.check([FAILED]):
            store.set(f"told/{place.rank}", "")
            time.sleep(SHOW_SECONDS)
            return ""
        for rank, process in enumerate(self._processes, start=1):
            if code := process.poll():
                ended = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
                return self._claimed(f"rank {rank} of {place.count} {ended}; {GONE}")
        # Rank 0 watches all other ranks, and they watch rank 0. Time is measured in looks, not in seconds, so that a
        # process that was suspended does not take the other ranks for lost when it resumes.
        for rank in range(1, place.count) if place.rank == 0 else [0]:
            if store.check([f"alive/{rank}"]):
                sign = store.get(f"alive/{rank}")
                if self._heard.get(rank, (b"", 0))[0] != sign:
                    self._heard[rank] = sign, looks
                elif looks - self._heard[rank][1] > SILENT_POLLS:
                    return self._claimed(f"nothing is heard from rank {rank} of {place.count} any more; {GONE}")
        return None

    def _claimed(self, failure: str) -> str:
        """Record in the store that this rank reports a failure; returns the message that this rank must show.

        This is `failure`, the error message, if this rank is the first to report a failure, else "".
        """
        return failure if claim(self._store, self._place) else ""

    def stop(self) -> None:
        """Stop watching: training is over, or this process is about to end."""
        self._over.set()

    @property
    def is_over(self) -> bool:
        """Whether `stop` was called."""
        return self._over.is_set()


def claim(store: "Store", place: Place) -> bool:
    """Record in the store that this rank has failed; returns False if another rank's failure is recorded already."""
    mine = json.dumps([place.rank, socket.gethostname()])
    return store.compare_set(FAILED, "", mine) == mine.encode()


# What the ranks tell each other.

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Ranks:
    """The processes that train together, as one of them sees them; its methods exchange values between the ranks.

    All ranks must call these methods in the same order, unless a docstring names the ranks that call the method. If
    there is only one rank, the methods return at once, with the values of this rank.
    """

    def __init__(self, place: Place | None = None, store: "Store | None" = None, watch: Watch | None = None) -> None:
        self.rank = place.rank if place else 0
        self.count = place.count if place else 1
        self.is_first = self.rank == 0  # whether this rank writes the log, the checkpoints and the model
        self.is_last = self.rank == self.count - 1
        self.local_count = place.local_count if place else 1  # number of ranks on this machine
        self.is_first_here = place is None or place.local_rank == 0  # whether it is the first rank on its machine
        self._place = place
        self._store = store
        self._watch = watch

    @property
    def are_many(self) -> bool:
        """Whether there is more than one rank."""
        return self.count > 1

    # Failures.

    def check(self) -> None:
        """Raise MtkitError if another rank has failed or is lost.

        If another rank already shows the error message, raises the subclass EndedElsewhereError, which has no message,
        so that the message is shown only once. Any rank may call this method at any time.
        """
        if self._watch and self._watch.has_failed.is_set():
            raise MtkitError(self._watch.failure) if self._watch.failure else EndedElsewhereError

    @contextmanager
    def talking(self) -> Iterator[None]:
        """Context manager for operations of the process group; if an operation fails, raises MtkitError.

        If memory runs out, the error of PyTorch is raised unchanged.
        """
        try:
            yield
        except RuntimeError as error:
            if self._watch is None or is_out_of_memory(error):
                raise
            # A failed rank records its failure before its connections close. If a rank is lost, rank 0 should report
            # the loss, so the other ranks wait longer.
            self._watch.has_failed.wait(NEWS_SECONDS + min(self.rank, 2) * ALIKE_SECONDS)
            self.check()
            raise MtkitError(f"another rank of the {self.count} is gone; {GONE}") from error

    def claim(self, error: BaseException) -> bool:
        """Tell the other ranks that this rank ends because of `error`; returns whether this rank must show the error.

        Any rank may call this method. If all ranks fail in the same way, as they do if training diverges, rank 0 shows
        the error. If a signal stops training, the other ranks wait here while rank 0 saves the state.
        """
        if self._watch is None or self._store is None or self._place is None:
            return True
        if self._watch.is_over or self._watch.failure:  # this rank is alone now, or its watch has told the others
            return True
        if isinstance(error, EndedElsewhereError):
            return False
        if self.rank:
            self._watch.has_failed.wait(GRACE_SECONDS * 5 if isinstance(error, StoppedError) else ALIKE_SECONDS)
        with suppress(RuntimeError):
            if self._watch.has_failed.is_set() or not claim(self._store, self._place):
                return False
            until = time.monotonic() + SHOW_SECONDS
            others = [f"told/{rank}" for rank in range(self.count) if rank != self.rank]
            while not self._store.check(others) and time.monotonic() < until:
                time.sleep(0.02)
        return True

    # The beginning and the end.

    def begin(self, trains: bool) -> None:
        """Tell the other ranks that the data is prepared; `trains` says whether there is anything to train.

        Only rank 0 calls this method.
        """
        if self._store:
            self._store.set("begin", str(trains))

    def are_to_train(self, stop: Stop) -> bool:
        """Wait until rank 0 calls `begin`; returns the argument `trains` of that call.

        All ranks except rank 0 call this method. Raises StoppedError if a signal stops this rank, and MtkitError if
        another rank has failed.
        """
        assert self._store is not None
        while not self._store.check(["begin"]):
            stop.check()
            self.check()
            time.sleep(0.05)
        return self._store.get("begin") == b"True"

    def part(self) -> None:
        """End the exchange between the ranks: afterwards, rank 0 continues alone, and the other ranks may end.

        The method returns only when all ranks have called it. Rank 0, whose process may host the store, then also waits
        until the other ranks no longer need the store, for LEAVE_SECONDS at most. A second call does nothing.
        """
        if self._watch is None or self._store is None or self._watch.is_over:
            return
        self._store.set(f"done/{self.rank}", "")
        everyone = range(self.count)
        while not self._store.check([f"done/{rank}" for rank in everyone]):
            self.check()
            time.sleep(0.02)
        self._watch.stop()
        if self.is_first:
            until = time.monotonic() + LEAVE_SECONDS
            while not self._store.check([f"left/{rank}" for rank in everyone[1:]]) and time.monotonic() < until:
                time.sleep(0.02)
        dist.destroy_process_group()
        if not self.is_first:
            self._store.set(f"left/{self.rank}", "")

    # Numbers, values and weights.

    def sums(self, values: Sequence[float]) -> list[float]:
        """Returns the sum of each value over all ranks, in fp64; sums of whole numbers are exact up to 2^53."""
        if not self.are_many:
            return list(values)
        return self.summed(torch.tensor(values, dtype=torch.float64)).tolist()

    def gather(self, value: Any) -> list[Any]:
        """Returns a list of the `value` of each rank, in the order of the ranks; the values are sent as JSON."""
        if not self.are_many:
            return [value]
        own = json.dumps(value).encode()
        sizes = [int(size) for size in self.sums([len(own) * (rank == self.rank) for rank in range(self.count)])]
        data = torch.zeros(sum(sizes), dtype=torch.uint8)
        begin = sum(sizes[: self.rank])
        data[begin : begin + len(own)] = torch.frombuffer(bytearray(own), dtype=torch.uint8)
        parts = self.summed(data).tensor_split(list(accumulate(sizes))[:-1])
        return [json.loads(bytes(part.tolist())) for part in parts]

    def of_first(self, value: T) -> T:
        """Returns, in every rank, the `value` that rank 0 has passed; the value is sent as JSON."""
        found: T = self.gather(value if self.is_first else None)[0]
        return found

    def share(self, model: nn.Module) -> None:
        """Copy the weights of `model` in rank 0 to `model` in all other ranks."""
        if self.are_many:
            with self.talking():
                for parameter in model.parameters():
                    dist.broadcast(parameter.detach(), 0)

    def summed(self, tensor: Tensor) -> Tensor:
        """Replace `tensor`, in place, by the sum of the tensors of all ranks; returns `tensor`."""
        with self.talking():
            dist.all_reduce(tensor)
        return tensor

    def agree(self, asked: Stop, stop: Stop, seconds: float) -> float:
        """Exchange training time and received signals between the ranks; returns the training time of rank 0.

        `seconds` is the training time that this rank has measured. `asked` records the signals that this rank has
        received. The signals that any rank has received are added to `stop` in every rank, so that all ranks act on
        them after the same update. In rank 0, `asked` and `stop` are the same object.
        """
        if not self.are_many:
            return seconds
        save, asked.save = asked.save, False
        mine = [seconds if self.is_first else 0.0, save, *(asked.signal == number for number in SIGNALS)]
        seconds, saves, *stops = self.sums(mine)
        stop.save = stop.save or saves > 0
        stop.signal = stop.signal or next((number for number, ranks in zip(SIGNALS, stops, strict=True) if ranks), 0)
        return seconds


ALONE = Ranks()


# Gradients.

BUCKET_BYTES = 25 << 20  # size of the gradients that are sent together, as in PyTorch's DistributedDataParallel


class GradientSum:
    """Sums the gradients of a model over the ranks while the backward pass computes further gradients.

    The gradients are divided into buckets. The first bucket has the gradients of the last parameters, which the
    backward pass computes first. A bucket is sent (all-reduced) as soon as all of its gradients are computed and all
    earlier buckets are sent. So all ranks send the buckets in the same order, and the sums do not depend on timing.
    """

    def __init__(self, model: nn.Module, ranks: Ranks) -> None:
        self._ranks = ranks
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._buckets = list(_buckets(self._parameters))
        self._is_last = False
        self._is_again = False  # whether the gradients are computed anew, so that only `finish` sends them
        self._waiting: list[set[Tensor]] = []  # for each bucket, the parameters whose gradients are not computed yet
        self._sent: list[tuple[Tensor, Work]] = []
        if ranks.are_many:
            for number, bucket in enumerate(self._buckets):
                for parameter in bucket:
                    parameter.register_post_accumulate_grad_hook(self._noting(number))  # type: ignore[no-untyped-call]

    def begin(self) -> None:
        """Let the next backward pass send each bucket as soon as its gradients are computed.

        To be called before the last backward pass of an update. If `begin_again` was called in this update, `finish`
        sends the buckets instead.
        """
        self._is_last = not self._is_again
        self._waiting = [set(bucket) for bucket in self._buckets]

    def begin_again(self) -> None:
        """Prepare for computing the gradients of this update again, since memory ran out in a forward or backward pass.

        Buckets that were already sent were complete, and are not sent again; `finish` sends the other buckets. So the
        other ranks, which wait in `finish`, get all buckets in the usual order.
        """
        self._is_last, self._is_again = False, True

    def _noting(self, number: int) -> Callable[[Tensor], None]:
        """Returns a hook for the parameters of bucket `number`.

        PyTorch calls the hook when the gradient of a parameter is computed. The hook sends all buckets whose turn it is
        and whose gradients are all computed.
        """

        def note(parameter: Tensor) -> None:
            if self._is_last:
                self._waiting[number].discard(parameter)
                while len(self._sent) < len(self._buckets) and not self._waiting[len(self._sent)]:
                    self._send()

        return note

    def _send(self) -> None:
        bucket = self._buckets[len(self._sent)]
        parts = [torch.zeros_like(each) if each.grad is None else each.grad for each in bucket]
        flat = torch.cat([part.detach().flatten() for part in parts])
        with self._ranks.talking():
            work = dist.all_reduce(flat, async_op=True)
        assert work is not None
        self._sent.append((flat, work))

    def finish(self, sums: Tensor, mean: float) -> tuple[Tensor, float]:
        """Replace the gradients by their sums over the ranks; also sums `sums` and averages `mean` over the ranks.

        Returns the sum of the vectors `sums`, in fp64, and the mean of the numbers `mean`. Buckets that were not sent
        during the backward pass are sent first. If no rank has a gradient for a parameter, its `grad` is `None`.
        """
        self._is_last = self._is_again = False
        while len(self._sent) < len(self._buckets):
            self._send()
        present = [float(parameter.grad is not None) for parameter in self._parameters]
        told = torch.tensor([mean / self._ranks.count, *present], dtype=torch.float64, device=sums.device)
        told = self._ranks.summed(torch.cat([sums.detach().double(), told]))
        total, mean_total, presence = told.tensor_split([len(sums), len(sums) + 1])
        # Reading `presence` would wait for the device, and is only needed if a gradient is missing in this rank.
        exists = [True] * len(present) if all(present) else (presence > 0).tolist()
        has_gradient = dict(zip(self._parameters, exists, strict=True))
        for bucket, (flat, work) in zip(self._buckets, self._sent, strict=True):
            with self._ranks.talking():
                work.wait()
            for parameter, part in zip(bucket, flat.tensor_split(_ends(bucket)[:-1]), strict=True):
                parameter.grad = part.view_as(parameter) if has_gradient[parameter] else None
        self._sent = []
        return total, float(mean_total)


def _ends(bucket: Sequence[nn.Parameter]) -> list[int]:
    return list(accumulate(parameter.numel() for parameter in bucket))


def _buckets(parameters: Iterable[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Yields the parameters, from the last on, in buckets of about BUCKET_BYTES bytes with a single dtype each."""
    bucket: list[nn.Parameter] = []
    size = 0
    for parameter in reversed(list(parameters)):
        if bucket and (size >= BUCKET_BYTES or parameter.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(parameter)
        size += parameter.numel() * parameter.element_size()
    if bucket:
        yield bucket
