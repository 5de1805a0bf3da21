"""The score of a credential at an upstream: what opens its breaker, what closes it, who may try."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from proxy.errors import Outcome
from proxy.upstream.breaker import FAILURE_SECONDS, FAILURES, Failures, Health, Load

NOW = 50_000.0
MOMENT = 1e-3
OPEN = [30, 60, 120, 240, 300, 300, 300]
"""For how many seconds a breaker opens, each time without having closed since."""


def answer(health: Health, now: float, status: int = 200, seconds: float = 0.1) -> None:
    """Let an attempt be answered with *status*, and the answer come to its end, at *now*."""
    probe = health.begin(now)
    health.answered(now, status, seconds, probe)
    if status < 500:
        health.succeeded(probe)
    health.end(probe)


def fail(health: Health, now: float, times: int = 1) -> None:
    """Let attempts fail at *now*, one after the other."""
    for _ in range(times):
        probe = health.begin(now)
        health.fault(now)
        health.end(probe)


def opened(now: float = NOW) -> Health:
    """Return a score whose breaker has just opened, at *now*."""
    health = Health()
    fail(health, now, 5)
    assert not health.ready(now)
    return health


# What opens it


def test_five_in_a_row() -> None:
    """The fifth failure in a row opens the breaker, for 30 s."""
    health = Health()
    for _ in range(4):
        fail(health, NOW)
        assert health.ready(NOW)
    fail(health, NOW)
    assert not health.ready(NOW)
    assert health.ready_at() == NOW + 30
    assert not health.ready(NOW + 30 - MOMENT)
    assert health.ready(NOW + 30)


def test_time_between_failures_does_not_matter() -> None:
    """Five failures in a row are five, however long they took."""
    health = Health()
    for hour in range(5):
        fail(health, NOW + hour * 3600)
    assert not health.ready(NOW + 4 * 3600)


def test_a_success_in_between() -> None:
    """A success starts the count anew."""
    health = Health()
    for _ in range(10):
        fail(health, NOW, 4)
        answer(health, NOW)
    assert health.ready(NOW)
    fail(health, NOW, 5)
    assert not health.ready(NOW)


def test_an_answer_that_breaks_off_is_no_success() -> None:
    """An answer that begins, and is cut, counts as the failure that it is."""
    health = Health()
    for _ in range(5):
        assert health.ready(NOW)
        probe = health.begin(NOW)
        health.answered(NOW, 200, 0.1, probe)
        health.fault(NOW)
        health.end(probe)
    assert not health.ready(NOW)


@pytest.mark.parametrize("status", [500, 501, 502, 503, 504, 520, 524, 529, 599])
def test_half_of_twenty_answers(status: int) -> None:
    """Half of at least 20 answers within 10 s being 5xx opens the breaker, a smaller part does not."""
    health = Health()
    for _ in range(11):
        answer(health, NOW)
    for _ in range(10):
        assert health.ready(NOW)
        answer(health, NOW, status)
    assert health.ready(NOW)
    answer(health, NOW, status)
    assert health.ready_at() == NOW + 30


def test_nineteen_answers() -> None:
    """Fewer than 20 answers say too little, even if all are 5xx."""
    health = Health()
    for _ in range(19):
        answer(health, NOW, 503)
        assert health.ready(NOW)
    answer(health, NOW, 503)
    assert not health.ready(NOW)


@pytest.mark.parametrize("start", [0.0, 5.0, NOW, 1e9])
@pytest.mark.parametrize(
    ("later", "ready"), [(0, False), (8, False), (10, True), (11, True), (25, True), (1e7, True)]
)
def test_the_window_forgets(start: float, later: float, ready: bool) -> None:
    """What is more than 10 s old counts no more."""
    health = Health()
    for _ in range(19):
        answer(health, start, 500)
    answer(health, start + later, 500)
    assert health.ready(start + later) is ready


@given(
    st.floats(0, 1e6),
    st.lists(
        st.tuples(st.sampled_from([0.0, 0.1, 0.5, 1, 3, 9, 10, 12]), st.booleans()), max_size=90
    ),
)
def test_the_window_is_the_last_ten_seconds(now: float, answers: list[tuple[float, bool]]) -> None:
    """The breaker opens just when half of the answers of these ten seconds, 20 at least, were 5xx."""
    health = Health()
    seen: list[tuple[int, bool]] = []
    for passed, bad in answers:
        now += passed
        answer(health, now, 500 if bad else 200)
        seen = [(second, one) for second, one in seen if second > int(now) - 10]
        seen.append((int(now), bad))
        worst = len(seen) >= 20 and sum(one for _, one in seen) * 2 >= len(seen)
        assert health.ready(now) is not (worst and bad)
        if not health.ready(now):
            break


@pytest.mark.parametrize(
    "status", [200, 204, 301, 400, 401, 403, 404, 408, 409, 413, 422, 429, 499]
)
def test_the_callers_faults_never_count(status: int) -> None:
    """No number of 4xx opens a breaker, nor makes an upstream one that has failed."""
    health = Health()
    for _ in range(200):
        answer(health, NOW, status)
    assert health.ready(NOW)
    assert health.failed == 0


def test_who_failed_last_is_known() -> None:
    """Failures, 5xx and rests leave the time behind at which they happened."""
    health = Health()
    fail(health, 10)
    assert health.failed == 10
    answer(health, 20, 503)
    assert health.failed == 20
    answer(health, 25)
    assert health.failed == 20
    health.rest(30, 1)
    assert health.failed == 30


# While it is open, and after


@pytest.mark.parametrize("status", [None, 500, 503, 529])
def test_it_opens_for_longer_and_longer(status: int | None) -> None:
    """Each time that the probe fails, or is answered 5xx, the breaker opens for twice as long, up to 300 s."""
    health, now = opened(), NOW
    for seconds in OPEN[:-1]:
        assert health.ready_at() == pytest.approx(now + seconds)
        assert not health.ready(now + seconds - MOMENT)
        now += seconds
        assert health.ready(now)
        if status is None:
            fail(health, now)
        else:
            answer(health, now, status)
    assert health.ready_at() == pytest.approx(now + OPEN[-1])


def test_one_probe_at_a_time() -> None:
    """When its time is over, one attempt is let through, and no other until that one has come to something."""
    health, now = opened(), NOW + 30
    for _ in range(2):
        assert health.ready(now)
        probe = health.begin(now)
        assert health.probing
        assert not health.ready(now)
        assert not health.ready(now + 1e6)
        health.end(probe)
        assert not health.probing
    assert health.ready(now)


def test_two_successes_close_it() -> None:
    """After two successes in a row it is as before: it takes five failures to open it, for 30 s."""
    health, now = opened(), NOW + 30
    answer(health, now)
    assert health.opened
    answer(health, now)
    assert not health.opened
    probe = health.begin(now)
    assert not health.probing
    assert health.ready(now)
    health.end(probe)
    fail(health, now, 4)
    assert health.ready(now)
    fail(health, now)
    assert health.ready_at() == now + 30


@pytest.mark.parametrize("status", [None, 503])
def test_one_success_does_not_close_it(status: int | None) -> None:
    """A success that a failure follows counts for nothing: two in a row are needed."""
    health, now = opened(), NOW
    for seconds in OPEN[:3]:
        now += seconds
        answer(health, now)
        assert health.opened
        if status is None:
            fail(health, now)
        else:
            answer(health, now, status)
        assert not health.ready(now)
    assert health.ready_at() == now + OPEN[3]


def test_a_probe_that_is_given_up() -> None:
    """A probe whose client leaves says nothing, and the next request may be the probe."""
    health, now = opened(), NOW + 30
    for _ in range(50):
        assert health.ready(now)
        health.end(health.begin(now))
    assert health.opened
    assert health.ready_at() == now


def test_what_was_in_flight_does_not_open_it_longer() -> None:
    """What was on its way when the breaker opened, and fails while it is open, changes nothing."""
    health = Health()
    for _ in range(30):
        health.begin(NOW)
    for _ in range(30):
        health.fault(NOW + 1)
        health.end(0)
    assert health.ready_at() == NOW + 31
    fail(health, NOW + 31)
    assert health.ready_at() == NOW + 31 + 60


def test_late_5xx_do_not_open_it_longer() -> None:
    """5xx that come in while the breaker is open change nothing."""
    health = opened()
    for second in range(29):
        probe = health.begin(NOW)
        health.answered(NOW + second, 503, 1, probe)
        health.end(probe)
    assert health.ready_at() == NOW + 30
    answer(health, NOW + 30, 503)
    assert health.ready_at() == NOW + 30 + 60


def test_what_was_in_flight_does_not_close_it() -> None:
    """Answers that had begun before the breaker opened, and end well, do not make the probe needless."""
    health = Health()
    probes = [health.begin(NOW), health.begin(NOW)]
    for probe in probes:
        health.answered(NOW, 200, 0.1, probe)
    fail(health, NOW, 5)
    for probe in probes:
        health.succeeded(probe)
        health.end(probe)
    now = NOW + 30
    assert health.ready(now)
    health.begin(now)
    assert not health.ready(now)


def test_what_was_in_flight_is_no_probe() -> None:
    """An attempt from before the breaker opened, which ends while another is the probe, lets nobody through."""
    health = Health()
    probe = health.begin(NOW)
    health.answered(NOW, 200, 0.1, probe)
    fail(health, NOW, 5)
    now = NOW + 30
    health.begin(now)
    assert not health.ready(now)
    health.end(probe)  # the first one's client has left
    assert not health.ready(now)


def test_the_probe_that_was_is_not_the_probe_that_is() -> None:
    """Once a probe is answered, the next one may go; that the first one's answer ends lets no third one through."""
    health, now = opened(), NOW + 30
    first = health.begin(now)
    health.answered(now, 200, 0.1, first)
    assert health.ready(now)
    health.begin(now)
    assert not health.ready(now)
    health.end(first)  # the first one's client has left
    assert not health.ready(now)


# Rest


@pytest.mark.parametrize(
    ("asked", "rested"), [(0.5, 0.5), (5, 5), (60, 60), (61, 60), (3600, 60), (1e9, 60)]
)
def test_a_rest(asked: float, rested: float) -> None:
    """A rest lasts as long as asked, and never longer than 60 s."""
    health = Health()
    health.rest(NOW, asked)
    assert health.ready_at() == NOW + rested
    assert not health.ready(NOW + rested - MOMENT)
    assert health.ready(NOW + rested)


def test_a_rest_is_not_cut_short() -> None:
    """Of two rests the one that ends later counts."""
    health = Health()
    health.rest(NOW, 40)
    health.rest(NOW + 1, 2)
    assert health.ready_at() == NOW + 40


def test_rest_and_breaker() -> None:
    """It takes both to be over before an attempt may be made."""
    health = opened()
    health.rest(NOW + 1, 50)
    assert not health.ready(NOW + 30)
    assert health.ready_at() == NOW + 51
    assert health.ready(NOW + 51)


def test_a_try_while_it_rests() -> None:
    """One that is asked though it rests is seen to be, until that is over; no breaker comes of it."""
    health = Health()
    health.rest(NOW, 10)
    probe = health.begin(NOW + 1)
    assert health.probing
    health.end(probe)
    assert not health.probing
    health.begin(NOW + 1)
    assert health.ready(NOW + 10)


def test_a_refused_connection() -> None:
    """A refused connection is remembered for a second, another failure is not."""
    health = Health()
    health.fault(NOW)
    assert health.refused_until == 0
    health.fault(NOW, refused=True)
    assert health.refused_until == NOW + 1


# Load and latency


@given(st.integers(0, 400), st.integers(0, 80))
@example(active=16, retrying=3)
def test_the_retry_budget(active: int, retrying: int) -> None:
    """A retry is allowed as long as retries, this one too, are at most 3, or 20 % of what is active."""
    with_it = retrying + 1
    allowed = Load(active, retrying).may_retry()
    if with_it <= 3 or with_it * 5 <= active:
        assert allowed
    elif with_it * 5 > active + 1:  # though this one will be active itself
        assert not allowed


def test_what_is_active() -> None:
    """An upstream's credentials share its load: what has begun and is not over."""
    load = Load()
    one, two = Health(load), Health(load)
    one.begin(NOW)
    two.begin(NOW + 1)
    assert (load.active, one.used, two.used) == (2, NOW, NOW + 1)
    one.end(0)
    two.end(0)
    assert load.active == 0


def test_latency() -> None:
    """How long it takes to begin follows what it took lately; 5xx say nothing about it."""
    health = Health()
    assert health.latency == 0
    answer(health, NOW, seconds=2)
    assert health.latency == 2
    answer(health, NOW, seconds=1)
    assert 1 < health.latency < 2
    before = health.latency
    answer(health, NOW, 503, seconds=0.001)
    assert health.latency == before
    for _ in range(50):
        answer(health, NOW, seconds=1)
    assert health.latency == pytest.approx(1, abs=0.01)


# Any life


class Life(RuleBasedStateMachine):
    """Attempts in any order, some of them begun though it rests, as happens to a route's only upstream."""

    def __init__(self) -> None:
        super().__init__()
        self.health = Health()
        self.now = NOW
        self.flying: list[int] = []
        self.clean = True

    @rule(seconds=st.sampled_from([0.0, 0.01, 0.9, 1, 5, 9, 30, 60, 300]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def begin(self) -> None:
        if self.health.opened and self.health.ready(self.now):
            self.flying.append(self.health.begin(self.now))
            assert not self.health.ready(self.now)
        else:
            self.flying.append(self.health.begin(self.now))

    def one(self, at: int) -> int:
        return self.flying[at % len(self.flying)]

    @precondition(lambda self: self.flying)
    @rule(status=st.sampled_from([200, 404, 429, 503]), times=st.integers(1, 15), at=st.integers(0))
    def answered(self, status: int, times: int, at: int) -> None:
        until = self.health.open_until
        for _ in range(times):
            self.health.answered(self.now, status, 0.1, self.one(at))
        self.bad(until, bad=status >= 500)

    @precondition(lambda self: self.flying)
    @rule(at=st.integers(0))
    def succeeded(self, at: int) -> None:
        self.health.succeeded(self.one(at))
        self.over(at)

    @precondition(lambda self: self.flying)
    @rule(refused=st.booleans(), at=st.integers(0))
    def fault(self, refused: bool, at: int) -> None:
        until = self.health.open_until
        self.health.fault(self.now, refused=refused)
        self.bad(until, bad=True)
        self.over(at)

    @precondition(lambda self: self.flying)
    @rule(at=st.integers(0))
    def over(self, at: int) -> None:
        self.health.end(self.flying.pop(at % len(self.flying)))

    @rule(seconds=st.floats(0, 1e6))
    def rest(self, seconds: float) -> None:
        self.clean = False
        self.health.rest(self.now, seconds)

    def bad(self, until: float, *, bad: bool) -> None:
        self.clean = self.clean and not bad
        if until > self.now or not bad:
            assert self.health.open_until == until

    @invariant()
    def every_attempt_is_counted(self) -> None:
        assert self.health.load.active == len(self.flying)

    @invariant()
    def who_never_failed_is_ready(self) -> None:
        assert self.health.ready(self.now) or not self.clean

    @invariant()
    def no_end_is_far(self) -> None:
        assert self.health.open_until <= self.now + 300
        assert self.health.resting_until <= self.now + 60

    @invariant()
    def nobody_is_shut_out_for_ever(self) -> None:
        """When its time is over, it is ready, or waits for what is on its way only."""
        assert self.health.ready(max(self.now, self.health.ready_at())) or any(self.flying)

    def teardown(self) -> None:
        while self.flying:
            self.over(0)
        now = max(self.now, self.health.ready_at())
        answer(self.health, now)
        answer(self.health, now)
        assert not self.health.opened
        assert self.health.ready(now)


Life.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
test_life = Life.TestCase


# What is kept for people to look at

KINDS: list[Outcome] = ["timeout", "upstream_cut", "upstream_error"]


@given(
    st.lists(st.tuples(st.floats(0, 30), st.sampled_from(KINDS))),
    st.floats(0, 100),
)
def test_failures(steps: list[tuple[float, Outcome]], later: float) -> None:
    """Failures count for a minute, to the second, by outcome; the last one is known for ever."""
    failures, now = Failures(), NOW
    all_of_them: list[tuple[float, Outcome]] = []
    for pause, outcome in steps:
        now += pause
        failures.count(now, outcome, f"c{len(all_of_them)}")
        all_of_them.append((now, outcome))
    found = failures.lately(now + later)
    for outcome in KINDS:
        ages = [now + later - at for at, one in all_of_them if one == outcome]
        least = sum(age < FAILURE_SECONDS - 1 for age in ages)
        assert least <= found.get(outcome, 0) <= sum(age <= FAILURE_SECONDS for age in ages)
    if steps:
        assert (failures.code, failures.at) == (f"c{len(steps) - 1}", now)


def test_failures_are_bounded() -> None:
    """However many failures there are, for however long, what is kept of them is small."""
    failures = Failures()
    for second in range(5000):
        for outcome in KINDS:
            failures.count(NOW + second, outcome, "x")
            failures.count(NOW + second, outcome, "x")
    assert len(failures._counts) <= 2 * FAILURE_SECONDS * len(FAILURES) + 1
    assert set(failures.lately(NOW + 4999).values()) == {2 * FAILURE_SECONDS}


def test_limit() -> None:
    """A rest that is not taken holds nobody back, and is over with the first answer that ends well."""
    health = Health()
    health.limit(NOW, 30)
    health.failures.count(NOW, "upstream_error", "429")
    assert health.ready(NOW)
    assert health.resting(NOW + 29)
    assert not health.resting(NOW + 30)
    health.limit(NOW, 1000)
    assert health.resting(NOW + 59)
    assert not health.resting(NOW + 60)
    health.good = NOW + 1
    assert not health.resting(NOW + 2)
