"""que/plan.py: who starts where, and the sentence that everybody else gets."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from que.gpus import Gpu
from que.job import Job
from que.plan import ALONE, LONGEST_WAIT, decide

GIB = 1 << 30
NOW = 1_000_000.0


def job(number, state="to_run", **fields):
    return Job("S3D", "asl100", "4", id=f"j{number}", state=state, **fields)


def runs(number, devices, reserve=None, **fields):
    return job(number, "cur_run", claim={"devices": devices, "reserve": reserve}, **fields)


def gpu(index, free=24.0, total=24.0):
    return Gpu(f"GPU-{index}", index, "H200", int(total * GIB), int(free * GIB))


def gpus(count):
    return [gpu(i) for i in range(count)]


def look(waiting, running=(), gpus=(), parents=(), **changes):
    found = {j.id: j for j in (*waiting, *running, *parents)}
    given_ = {"slots": 1, "now": NOW, "headroom": 0, "find": found.get, "settled": lambda uuid, need: True,
              "learned": lambda job: None, "used": lambda gpu, job: 0, **changes}
    return decide(waiting, running, gpus, **given_)


def starts(decision):
    return {start.job.id: start.devices for start in decision.starts}


# --- numbers of GPUs


@pytest.mark.parametrize("count", [0, 1, 4, 8])
def test_ten_jobs_on_any_number_of_gpus(count):
    decision = look([job(n) for n in range(1, 11)], gpus=gpus(count), slots=2)
    wanted = {f"j{i + 1}": [f"GPU-{i}"] for i in range(count)} or {"j1": ["cpu:0"], "j2": ["cpu:1"]}
    assert starts(decision) == wanted
    assert decision.starts[0].reserve is None
    assert len(decision.reasons) == 10 - len(wanted)


def test_gpus_zero_takes_a_cpu_slot_beside_the_gpus():
    decision = look([job(1), job(2, gpus=0), job(3, gpus=0), job(4, gpus=0)], gpus=gpus(1))
    assert starts(decision) == {"j1": ["GPU-0"], "j2": ["cpu:0"]}
    assert decision.reasons == {"j3": "waits for a CPU slot: 1 of 1 in use",
                                "j4": "behind j3, which waits for a CPU slot"}


def test_cpu_slots_that_run_are_taken_and_fewer_slots_than_before_start_none():
    assert starts(look([job(1)], [runs(2, ["cpu:0"])], slots=2)) == {"j1": ["cpu:1"]}
    assert starts(look([job(1)], [runs(2, ["cpu:3"]), runs(3, ["cpu:4"])], slots=2)) == {}
    assert look([job(1)], slots=0).reasons == {"j1": "waits for a CPU slot: 0 of 0 in use"}


def test_several_gpus_are_those_with_most_free_memory():
    decision = look([job(1, gpus=2)], gpus=[gpu(0, 22), gpu(1, 23.5), gpu(2, 23), gpu(3, 24)])
    assert starts(decision) == {"j1": ["GPU-1", "GPU-3"]}


def test_more_gpus_than_there_are_block_nobody():
    decision = look([job(1, gpus=4), job(2)], gpus=gpus(2))
    assert starts(decision) == {"j2": ["GPU-0"]}
    assert decision.reasons == {"j1": "asks for 4 GPUs, 2 there"}
    assert look([job(1, gpus=1)]).reasons == {"j1": "asks for a GPU, none there"}


# --- exclusive


def test_the_memory_of_strangers_and_our_claims_are_told():
    decision = look([job(4)], [runs(3, ["GPU-0"])], [gpu(0), gpu(1, 14.9)])
    assert decision.reasons == {"j4": "waits for a GPU: GPU 0 is j3's, GPU 1 has 9.1 GiB in use by others"}


def test_a_gpu_counts_as_free_from_nine_tenths_on():
    assert starts(look([job(1)], gpus=[gpu(0, 22)])) == {"j1": ["GPU-0"]}
    assert starts(look([job(1)], gpus=[gpu(0, 21)])) == {}


def test_a_gpu_that_has_just_come_free_settles():
    decision = look([job(1)], gpus=gpus(2), settled=lambda uuid, need: uuid == "GPU-1")
    assert starts(decision) == {"j1": ["GPU-1"]}
    assert look([job(1)], gpus=gpus(1), settled=lambda uuid, need: False).reasons == {
        "j1": "waits for a GPU: GPU 0 has just come free, settles"}


def test_settled_is_asked_for_the_memory_that_has_to_be_free():
    asked: list = []

    def settled(uuid, need):
        asked.append((uuid, need / GIB))
        return True
    look([job(1, memory=4 * GIB), job(2)], [runs(3, ["GPU-0"], 6 * GIB)], gpus(2), used=lambda gpu, job: GIB,
         settled=settled)
    assert asked[:2] == [("GPU-0", 9), ("GPU-1", 4)] and asked[2] == ("GPU-1", pytest.approx(21.6))


# --- shared


def test_shared_jobs_fill_the_fullest_gpu_that_suffices():
    running = [runs(8, ["GPU-0"], 8 * GIB), runs(9, ["GPU-1"], 16 * GIB)]
    decision = look([job(1, memory=6 * GIB), job(2, memory=6 * GIB), job(3, memory=6 * GIB), job(4, memory=6 * GIB)],
                    running, gpus(2))
    assert starts(decision) == {"j1": ["GPU-1"], "j2": ["GPU-0"], "j3": ["GPU-0"]}
    assert {start.reserve for start in decision.starts} == {6 * GIB}
    assert decision.reasons == {"j4": "waits for 6.0 GiB of a GPU: GPU 0 has 4.0 GiB left beside j8 and j2 and j3, "
                                      "GPU 1 has 2.0 GiB left beside j9 and j1"}


def test_nobody_shares_with_an_exclusive_job_nor_it_with_sharers():
    decision = look([job(1, memory=GIB), job(2)], [runs(8, ["GPU-0"], peak=GIB), runs(9, ["GPU-1"], GIB)], gpus(2))
    assert starts(decision) == {"j1": ["GPU-1"]}
    assert decision.reasons == {"j2": "waits for a GPU: GPU 0 is j8's, GPU 1 is j9 and j1's"}


def test_a_measured_peak_takes_the_place_of_the_declared_memory():
    waiting = [job(1, memory=12 * GIB)]
    assert starts(look(waiting, [runs(2, ["GPU-0"], 20 * GIB)], gpus(1))) == {}
    assert starts(look(waiting, [runs(2, ["GPU-0"], 20 * GIB, peak=8 * GIB)], gpus(1))) == {"j1": ["GPU-0"]}


def test_what_a_job_reserved_and_does_not_use_yet_is_not_free():
    other, waiting = [runs(2, ["GPU-0"], 10 * GIB)], [job(1, memory=10 * GIB)]
    live = [gpu(0, free=19)]  # 5 are in use: ours where `used` says so, else a stranger's
    assert starts(look(waiting, other, live, used=lambda gpu, job: 5 * GIB)) == {"j1": ["GPU-0"]}
    assert look(waiting, other, live).reasons == {
        "j1": "waits for 10.0 GiB of a GPU: GPU 0 has 9.0 GiB left beside j2"}


def test_headroom_is_nobodys():
    assert starts(look([job(1, memory=24 * GIB)], gpus=gpus(1))) == {"j1": ["GPU-0"]}
    decision = look([job(1, memory=24 * GIB), job(2, memory=GIB)], gpus=gpus(1), headroom=GIB)
    assert decision.reasons == {"j1": "asks for 24.0 GiB of a GPU, there is 23.0 GiB"}
    assert starts(decision) == {"j2": ["GPU-0"]}
    beside = [runs(2, ["GPU-0"], 20 * GIB)]
    decision = look([job(1, memory=4 * GIB)], beside, [gpu(0, 4)], headroom=GIB, used=lambda gpu, job: 20 * GIB)
    assert decision.reasons == {"j1": "waits for 4.0 GiB of a GPU: GPU 0 has 3.0 GiB left beside j2"}


def test_a_learned_peak_above_the_declared_memory_counts():
    decision = look([job(1, memory=2 * GIB)], gpus=gpus(1), learned=lambda job: 9 * GIB)
    assert decision.starts[0].reserve == 9 * GIB
    decision = look([job(1, memory=2 * GIB)], gpus=[gpu(0, 8)], learned=lambda job: 9 * GIB)
    assert decision.reasons == {"j1": "waits for 9.0 GiB of a GPU: GPU 0 has 16.0 GiB in use by others"}


def test_a_peak_learned_on_a_larger_gpu_keeps_no_job_from_all_of_a_smaller_one():
    decision = look([job(1, memory=2 * GIB)], gpus=gpus(1), headroom=GIB, learned=lambda job: 70 * GIB)
    assert decision.starts[0].reserve == 23 * GIB


def test_shared_on_several_gpus_of_unlike_size():
    unlike = [gpu(0), gpu(1, 8, 8), gpu(2)]
    assert starts(look([job(1, gpus=2, memory=10 * GIB)], gpus=unlike)) == {"j1": ["GPU-0", "GPU-2"]}
    assert look([job(1, gpus=3, memory=10 * GIB)], gpus=unlike).reasons == {
        "j1": "asks for 10.0 GiB on each of 3 GPUs, there is 8.0 GiB"}
    assert look([job(1, memory=10 * GIB)], [runs(2, ["GPU-0", "GPU-2"])], unlike).reasons == {
        "j1": "waits for 10.0 GiB of a GPU: GPU 0 is j2's, GPU 1 is too small, GPU 2 is j2's"}


# --- order


def test_later_gpu_jobs_wait_behind_one_that_waits_for_several():
    decision = look([job(3, gpus=2), job(4), job(5, memory=GIB), job(6, gpus=0)], [runs(1, ["GPU-0"])], gpus(2))
    assert starts(decision) == {"j6": ["cpu:0"]}
    assert decision.reasons == {"j3": "waits for 2 GPUs: GPU 0 is j1's, GPU 1 is free",
                                "j4": "behind j3, which waits for 2 GPUs", "j5": "behind j3, which waits for 2 GPUs"}


# --- parents, times, Slurm


@pytest.mark.parametrize(("state", "reason"), [
    ("to_run", "waits for j1 (S3D asl100 4), which is queued"), ("cur_run", "waits for j1 (S3D asl100 4), which runs"),
    ("held", "waits for j1 (S3D asl100 4), which is held"), ("fail_runs", "j1 failed: recover it, or remove this one"),
    ("trash", "j1 is gone: remove this one"), ("old_runs", None)])
def test_a_child_waits_for_its_parent(state, reason):
    decision = look([job(2, after=["j1"])], parents=[job(1, state)], gpus=gpus(1))
    assert decision.reasons.get("j2") == reason
    assert bool(decision.starts) == (reason is None)


def test_the_first_of_several_parents_that_is_not_done_is_named():
    parents = [job(1, "fail_runs"), job(2, "old_runs"), job(3, "to_run")]
    assert look([job(4, after=["j2", "j1", "j3"])], parents=parents).reasons["j4"].startswith("j1 failed")
    assert look([job(4, after=["j2", "j9"])], parents=parents).reasons == {"j4": "j9 is gone: remove this one"}


def test_a_job_that_waits_for_others_or_for_a_time_blocks_nobody():
    decision = look([job(1, after=["j9"]), job(2, not_before=NOW + 19.2), job(3, slurm={"job": 12}),
                     job(4, slurm={"script": "x"}), job(5)], gpus=gpus(1))
    assert starts(decision) == {"j5": ["GPU-0"]}
    assert list(decision.reasons.values())[1:] == ["tries again in 20 s", "Slurm job 12", "is handed to Slurm"]


def test_a_clock_that_was_wrong_holds_nobody_up():
    assert starts(look([job(1, not_before=NOW + LONGEST_WAIT + 1)])) == {"j1": ["cpu:0"]}
    assert starts(look([job(1, not_before=NOW - 5)])) == {"j1": ["cpu:0"]}


# --- a GPU that disappears


def test_a_gpu_that_disappears_takes_nobody_else_along():
    running = [runs(1, ["GPU-0"]), runs(2, ["GPU-1"])]
    decision = look([job(3), job(4, gpus=3)], running, [gpu(0), gpu(2)], lost=["GPU 1: GPU is lost"])
    assert starts(decision) == {"j3": ["GPU-2"]}
    assert decision.reasons == {"j4": "asks for 3 GPUs, 2 there; GPU 1: GPU is lost"}


def test_with_all_gpus_lost_a_job_does_not_go_to_the_cpu_by_itself():
    decision = look([job(1), job(2, gpus=0)], lost=["GPU 0: GPU is lost"])
    assert starts(decision) == {"j2": ["cpu:0"]}
    assert decision.reasons == {"j1": "asks for a GPU, none there; GPU 0: GPU is lost"}


# --- whatever comes

sizes = st.integers(1, 30).map(lambda n: n * GIB)
wishes = st.tuples(st.sampled_from([None, None, 0, 1, 2, 3, 8]), st.none() | sizes)


@st.composite
def machines(draw):
    """(waiting, running, gpus, slots, headroom, unsettled, learned, used). What runs need not fit, as after an edit."""
    cards = [gpu(i, total * draw(st.sampled_from([0, .3, .85, .9, .95, 1])), total)
             for i, total in enumerate(draw(st.lists(st.sampled_from([8.0, 24.0, 24.0]), max_size=8)))]
    uuids = [card.uuid for card in cards] + ["GPU-gone"]
    running = [runs(100 + i, draw(st.lists(st.sampled_from(uuids), min_size=1, max_size=2, unique=True)
                                  | st.just([f"cpu:{draw(st.integers(0, 4))}"])),
                    draw(st.none() | sizes), peak=draw(st.sampled_from([0, 0, GIB, 9 * GIB])))
               for i in range(draw(st.integers(0, 4)))]
    waiting = [job(i + 1, gpus=wish[0], memory=wish[1], after=["j999"] * draw(st.sampled_from([0, 0, 0, 1])),
                   not_before=draw(st.sampled_from([0, 0, 0, NOW + 9])))
               for i, wish in enumerate(draw(st.lists(wishes, max_size=12)))]
    return (waiting, running, cards, draw(st.integers(0, 3)), draw(st.sampled_from([0, GIB])),
            set(draw(st.lists(st.sampled_from(uuids), max_size=2))), draw(st.none() | sizes),
            draw(st.sampled_from([0, 2 * GIB])))


def settle(machine):
    waiting, running, cards, slots, headroom, unsettled, learned, used = machine
    return look(waiting, running, cards, slots=slots, headroom=headroom, learned=lambda job: learned,
                settled=lambda uuid, need: uuid not in unsettled, used=lambda gpu, job: used)


def free_rooms(machine, decision, need):
    """The GPUs that could still take `need` (None: exclusive) after the decision, reckoned in another way."""
    _, running, cards, _, headroom, unsettled, _, used = machine
    found = []
    for card in cards:
        ours = [(j.claim["reserve"], j.peak, used) for j in running if card.uuid in j.claim["devices"]]
        ours += [(start.reserve, 0, 0) for start in decision.starts if card.uuid in start.devices]
        reserves = [(peak or reserve, held) for reserve, peak, held in ours if reserve is not None]
        if len(reserves) < len(ours) or card.uuid in unsettled:
            continue
        live = card.free - sum(max(size - held, 0) for size, held in reserves)
        if need is None:
            fits = not ours and card.free >= ALONE * card.total
        else:
            fits = sum(size for size, _ in reserves) + need <= card.total - headroom and live >= need
        found += [card.uuid] * fits
    return found


@given(machines())
def test_each_waiting_job_starts_or_has_a_reason(machine):
    decision = settle(machine)
    assert sorted([*starts(decision), *decision.reasons]) == sorted(j.id for j in machine[0])
    assert all(decision.reasons.values())
    assert all(not start.job.after and not start.job.not_before for start in decision.starts)


@given(machines())
def test_no_gpu_and_no_cpu_slot_is_given_twice_nor_overcommitted(machine):
    waiting, running, cards, slots, headroom, unsettled, _, used = machine
    decision = settle(machine)
    taken = [name for j in running for name in j.claim["devices"] if name.startswith("cpu:")]
    cpu = [name for start in decision.starts for name in start.devices if name.startswith("cpu:")]
    assert not cpu or len(taken) + len(cpu) <= slots and len({*taken, *cpu}) == len({*taken}) + len(cpu)
    assert set(cpu) <= {f"cpu:{i}" for i in range(slots)}
    for start in decision.starts:
        count = start.job.gpus if start.job.gpus is not None else min(len(cards), 1)
        assert len(set(start.devices)) == len(start.devices) == max(count, 1)
        assert not unsettled & set(start.devices)
    for card in cards:
        new = [start for start in decision.starts if card.uuid in start.devices]
        old = [j for j in running if card.uuid in j.claim["devices"]]
        if any(start.reserve is None for start in new):
            assert len(new) == 1 and not old and card.free >= ALONE * card.total
        elif new:
            assert all(j.claim["reserve"] is not None for j in old)
            reserved = [j.peak or j.claim["reserve"] for j in old]
            asked = sum(start.reserve for start in new)
            assert sum(reserved) + asked <= card.total - headroom
            assert card.free - sum(max(size - used, 0) for size in reserved) >= asked
            assert all(start.reserve >= start.job.memory for start in new)


@given(machines())
def test_nobody_is_passed_by_a_later_job_of_its_kind(machine):
    """The first who waits for a GPU could not be served, even after all starts, and nobody behind it starts."""
    waiting, _, cards, slots, headroom, _, learned, _ = machine
    decision = settle(machine)
    for on_gpu in (True, False):
        kind = [j for j in waiting if bool(cards if j.gpus is None else j.gpus) == on_gpu]
        first = next((j for j in kind if decision.reasons.get(j.id, "").startswith("waits for") and not j.after), None)
        if not first:
            continue
        behind = kind[kind.index(first) + 1:]
        assert not {j.id for j in behind} & set(starts(decision))
        expected = f"behind {first.id}", "asks for", "j999", "tries"
        assert all(decision.reasons[j.id].startswith(expected) for j in behind)
        if on_gpu:
            most = sorted((card.total - headroom for card in cards), reverse=True)[(first.gpus or 1) - 1]
            need = first.memory and max(first.memory, min(learned or 0, most))
            assert len(free_rooms(machine, decision, need)) < (first.gpus or 1)


@given(machines(), st.integers(0, 999).map(Random))
def test_the_order_in_which_gpus_and_running_jobs_are_told_changes_no_start(machine, random):
    waiting, running, cards, *rest = machine
    shuffled = waiting, random.sample(running, len(running)), random.sample(cards, len(cards)), *rest
    assert starts(settle(shuffled)) == starts(settle(machine))


@given(machines())
def test_a_second_look_with_the_starts_running_starts_nobody_else(machine):
    """All that could start did so at once."""
    waiting, running, cards, *rest = machine
    first = settle(machine)
    begun = [Job(**{**vars(s.job), "claim": {"devices": s.devices, "reserve": s.reserve}}) for s in first.starts]
    left = [j for j in waiting if j.id in first.reasons]
    if rest[-1] == 0:  # a job that has just started uses nothing yet
        assert settle((left, [*running, *begun], cards, *rest)).starts == []
