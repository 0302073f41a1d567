"""How the host code of Triton files launches kernels: copied verbatim into every file that `emit_triton` writes."""

from copy import copy
from functools import lru_cache
from inspect import getclosurevars
from types import SimpleNamespace

import torch
import triton


def kind(argument):
    """What Triton compiles anew for in a runtime argument: whether it is there, and where its memory begins."""
    return argument.data_ptr() % 16 if isinstance(argument, torch.Tensor) else argument is None


def launch(kernel, grid, case, given, options):
    """Launches a kernel on the device of q. ``case``, the device first, is all that Triton would compile anew for."""
    device = case[0][0]
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):
            launch(kernel, grid, case, given, options)
            return
    place = _place(kernel, case)
    if place:
        place[0](grid, given)
    elif (compiled := kernel[grid](*given, **options)) is not None:  # as it is in the interpreter
        place.append(Launcher(compiled))


@lru_cache(maxsize=1024)
def _place(kernel, case):
    """Where `launch` keeps the compiled kernel of a case."""
    return []


class Launcher:
    """Launches a compiled kernel: by the last call that Triton makes for it, where that is known, and else as Triton does."""

    def __init__(self, compiled):
        self.compiled = compiled
        self.call, self.descriptors, self.made = last_call(compiled) or (None, {}, None)
        if self.call:
            self.runtime, self.stream = triton.knobs.runtime, triton.runtime.driver.active.get_current_stream

    def free(self):
        """Whether Triton need not be asked, as nobody (a profiler, say) is to be told of launches."""
        enter, leave = self.runtime.launch_enter_hook, self.runtime.launch_exit_hook
        return not getattr(enter, "calls", enter) and not getattr(leave, "calls", leave)

    def __call__(self, grid, given):
        if not self.call or not self.free():
            self.compiled[grid](*given)
            return
        if self.descriptors:
            given = list(given)
            for i in reversed(self.descriptors):
                view = given[i]
                given[i : i + 1] = described_at(self, i, view.base.data_ptr(), tuple(view.shape), tuple(view.strides))
        self.call(grid, self.stream(torch.cuda.current_device()), given)


def last_call(compiled):
    """The last call that Triton makes to launch a compiled kernel: a function (grid, stream, arguments).

    Before it, Triton runs Python for longer than a short kernel takes, and with the same result each time: so that is run
    once, to see what comes out. It is no interface of Triton's, so that anything unlike Triton 3.6 and 3.7 on NVIDIA GPUs
    gives None. With it come the places of descriptors among the arguments, each with what is known of it, and the function
    of both that says what is passed in its place.
    """
    seen, marks, rest = [], [object() for _ in range(4)], object()
    try:
        launcher = copy(compiled.run)
        call, launcher.launch = launcher.launch, lambda *passed: seen.append(passed)
        launcher(*marks, compiled.function, compiled.packed_metadata, None, None, None, rest)
        places, known, made = [], [], None
        if hasattr(call, "__closure__"):  # what says in Python what is passed for descriptors
            inner, made = getclosurevars(call).nonlocals, call.__globals__["make_tensordesc_arg"]
            call, places, known = inner["launcher"], sorted(inner["tensordesc_indices"]), inner["tensordesc_meta"]
        ((*first, function), fixed, last) = seen[0][:5], seen[0][5:-1], seen[0][-1]
    except Exception:
        return None
    alike = first == marks and function == compiled.function and len(places) == len(known) and all(known)
    if torch.version.hip or not alike:
        return None
    descriptors = dict(zip(places, known))  # noqa: B905
    if last is rest:
        return lambda grid, stream, given: call(*grid, stream, function, *fixed, *given), descriptors, made
    if last == (rest,):
        return lambda grid, stream, given: call(*grid, stream, function, *fixed, given), descriptors, made
    return None


@lru_cache(maxsize=1024)
def described_at(launcher, place, address, shape, steps):
    """What is passed for a descriptor. It says where memory lies and holds none: it is as right for what lies there next."""
    base = SimpleNamespace(data_ptr=lambda: address)
    view = SimpleNamespace(base=base, shape=shape, strides=steps, padding="zero", round_f32_to_tf32=False)
    return launcher.made(view, launcher.descriptors[place])


class Repeat:
    """A call that is one launch, for other tensors of the same kinds: nothing is left to do but to allocate and to launch."""

    def __init__(self, launcher, grid, given, tensors, scale):
        """``tensors`` are q, k, v, the output and its log-sum-exp; all else that is ``given`` is the same each time."""
        self.launcher, self.grid, self.device = launcher, grid, tensors[0].device
        self.made = [(tuple(t.shape), t.stride(), t.dtype) for t in tensors[3:]]
        self.empty = empty_on(self.device)
        places = {id(t): i for i, t in enumerate(tensors)}
        self.given, self.pointers, self.views = [], [], []
        for i, argument in enumerate(given):
            if i in launcher.descriptors:
                shape, steps = tuple(argument.shape), tuple(argument.strides)
                self.views.append((len(self.given), places[id(argument.base)], i, shape, steps))
                self.given += described_at(launcher, i, argument.base.data_ptr(), shape, steps)
                continue
            if isinstance(argument, torch.Tensor):
                self.pointers.append((len(self.given), places[id(argument)]))
            elif argument is scale:
                self.scale = len(self.given)
            self.given.append(argument)
        for at, _ in self.pointers:
            self.given[at] = None

    def __call__(self, q, k, v, scale):
        """The output and its log-sum-exp; None where it takes more than that."""
        launcher, current = self.launcher, torch.cuda.current_device()
        found = [q.data_ptr(), k.data_ptr(), v.data_ptr()]
        if (found[0] | found[1] | found[2]) % 16 or current != self.device.index or not launcher.free():
            return None
        out, lse = (self.empty(*one) for one in self.made)
        found += out.data_ptr(), lse.data_ptr()
        given = self.given.copy()
        given[self.scale] = scale
        for at, i in self.pointers:
            given[at] = found[i]
        for at, i, place, shape, steps in self.views:
            given[at] = described_at(launcher, place, found[i], shape, steps)[0]
        launcher.call(self.grid, launcher.stream(current), given)
        return out, lse


def remember(known, kernel, case, grid, given, tensors, scale):
    """Keeps in ``known`` how to `Repeat` a call, unless it has copied its tensors. Nothing else that is given is a float."""
    place = _place(kernel, case)
    used = {id(getattr(t, "base", t)) for t in given if isinstance(getattr(t, "base", t), torch.Tensor)}
    if place and place[0].call and isinstance(scale, float) and used <= set(map(id, tensors)):
        known[:] = [Repeat(place[0], grid, given, tensors, scale)]


@lru_cache(maxsize=1024)
def known_call(*case):
    """Where `remember` keeps a call of a case."""
    return []


@lru_cache(maxsize=64)
def empty_on(device):
    """A function (shape, strides, dtype) that allocates on a device, which is the current one.

    What torch's own compiler allocates with takes a third of the time that `torch.empty` does. Its memory is never filled, in
    deterministic mode neither: kernels write all of it.
    """
    quick = getattr(getattr(torch._C._dynamo, "guards", None), "_empty_strided_cuda", None)
    if device.type == "cuda" and quick is not None:
        return quick
    return lambda shape, steps, dtype: torch.empty_strided(shape, steps, dtype=dtype, device=device)
