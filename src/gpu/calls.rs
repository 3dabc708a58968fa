//! Calls into the GPU library, on threads of their own, watched by a clock.
//!
//! A call into a sick driver may never return, and no thread can be stopped
//! from outside. So a call that is overdue is reported and its thread left
//! behind; no second call is made under the same key until the first returns,
//! which bounds the threads that can be lost.
//!
//! One thread makes all calls, one after the other, as a thread costs more than
//! most calls. One that is slow is left with its call, and another thread goes on
//! with the rest. Answers are handed over when no call is left or a moment has
//! passed, and not one by one: each would wake the task that takes them. A call that
//! is [repeated](Calls::repeat) wakes nobody, unless it has something to tell.

use std::collections::{HashMap, VecDeque};
use std::future::pending;
use std::hash::Hash;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::time::sleep_until;

/// A library call that has not come back by then is taken to hang.
pub const DEADLINE: Duration = Duration::from_secs(10);

/// A call that has not come back by then is slow.
const SLOW: Duration = Duration::from_millis(100);
/// Answers wait no longer than this for others to join them.
const TOGETHER: Duration = Duration::from_millis(5);
/// A thread without a call ends after this, unless more are to be expected.
const IDLE: Duration = Duration::from_secs(1);

/// What became of a call.
#[derive(Debug)]
pub enum Outcome<K, T> {
    /// It came back, in time or not.
    Returned(K, T),
    /// Its deadline has passed. Said once a call.
    Overdue(K),
    /// It panicked.
    Panicked(K),
}

/// None: there is nothing to tell.
type Call<T> = Box<dyn FnOnce() -> Option<T> + Send>;

/// A call that is made by itself.
struct Repeated<K, T> {
    key: K,
    /// From the end of the last call, whichever that was.
    after: Duration,
    call: Arc<dyn Fn() -> Option<T> + Send + Sync>,
}

/// A call that is out.
#[derive(Default)]
struct Out {
    /// None while it waits for its turn.
    started: Option<Instant>,
    /// Its thread makes no other call any more, unless it is needed.
    slow: bool,
    overdue: bool,
}

struct State<K, T> {
    waiting: VecDeque<(K, Call<T>)>,
    out: HashMap<K, Out>,
    /// None: it panicked.
    returned: VecDeque<(K, Option<T>)>,
    /// Since when the first of them waits to be taken.
    returned_since: Option<Instant>,
    /// Threads that are idle or with a call that is not slow.
    threads: usize,
    /// One of them waits for work, and was not woken yet.
    idle: bool,
    /// Calls come again and again: a thread waits for them.
    steady: bool,
    repeated: Option<Repeated<K, T>>,
    /// Nobody wants an answer any more.
    closed: bool,
}

struct Shared<K, T> {
    state: Mutex<State<K, T>>,
    /// There is a call to make, or none will come.
    work: Condvar,
    /// There are answers.
    answers: Notify,
}

impl<K, T> Shared<K, T> {
    /// Waits for work, and for so long. Whether that has passed.
    fn wait<'a>(
        &self,
        state: MutexGuard<'a, State<K, T>>,
        time: Option<Duration>,
    ) -> (MutexGuard<'a, State<K, T>>, bool) {
        let Some(time) = time else {
            let state = self.work.wait(state);
            return (state.unwrap_or_else(PoisonError::into_inner), false);
        };
        let waited = self.work.wait_timeout(state, time);
        let (state, waited) = waited.unwrap_or_else(PoisonError::into_inner);
        (state, waited.timed_out())
    }

    fn lock(&self) -> MutexGuard<'_, State<K, T>> {
        // No code of others runs under the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The calls that are out, by key.
pub struct Calls<K, T> {
    shared: Arc<Shared<K, T>>,
    deadline: Duration,
}

impl<K, T> Calls<K, T>
where
    K: Clone + Eq + Hash + Send + 'static,
    T: Send + 'static,
{
    /// No calls yet; each will have `deadline`.
    pub fn new(deadline: Duration) -> Self {
        Self::of(deadline, false)
    }

    /// The same for calls that come again and again: a thread stays for them.
    pub fn steady(deadline: Duration) -> Self {
        Self::of(deadline, true)
    }

    fn of(deadline: Duration, steady: bool) -> Self {
        let state = State {
            waiting: VecDeque::new(),
            out: HashMap::new(),
            returned: VecDeque::new(),
            returned_since: None,
            threads: 0,
            idle: false,
            steady,
            repeated: None,
            closed: false,
        };
        Self {
            shared: Arc::new(Shared {
                state: Mutex::new(state),
                work: Condvar::new(),
                answers: Notify::new(),
            }),
            deadline,
        }
    }

    /// Starts `call` when its turn comes, unless an earlier one under `key` is
    /// still out. Not before [`next`](Self::next) or [`go`](Self::go): a thread that
    /// is woken by the first of several would be in the way of the others.
    pub fn start(&mut self, key: K, call: impl FnOnce() -> T + Send + 'static) -> bool {
        let mut state = self.shared.lock();
        if state.out.contains_key(&key) {
            return false;
        }
        state.out.insert(key.clone(), Out::default());
        state.waiting.push_back((key, Box::new(|| Some(call()))));
        true
    }

    /// Has `call` made by the thread that waits for calls (of [`steady`](Self::steady)
    /// ones), each time that it has waited for so long, until it has something to
    /// tell. Nobody watches its time: who wants to know whether it hangs has `call`
    /// show that it does not.
    pub fn repeat(
        &mut self,
        key: K,
        after: Duration,
        call: impl Fn() -> Option<T> + Send + Sync + 'static,
    ) {
        let mut state = self.shared.lock();
        state.repeated = Some(Repeated {
            key,
            after,
            call: Arc::new(call),
        });
        let waits = state.idle;
        drop(state);
        // It waits for ever so far.
        if waits {
            self.shared.work.notify_one();
        }
    }

    /// From now on nothing is repeated. A call that has begun may still tell
    /// something.
    pub fn repeat_no_more(&mut self) {
        self.shared.lock().repeated = None;
    }

    /// Lets the calls begin, though nobody waits for their answers yet.
    pub fn go(&self) {
        self.see_to_a_thread(self.shared.lock());
    }

    /// Where none can be had, the next call or the clock tries again.
    fn see_to_a_thread(&self, mut state: MutexGuard<'_, State<K, T>>) {
        if state.waiting.is_empty() {
            return;
        }
        if state.threads > 0 {
            let waits = std::mem::take(&mut state.idle);
            // One that is woken wants the lock.
            drop(state);
            if waits {
                self.shared.work.notify_one();
            }
            return;
        }
        let shared = self.shared.clone();
        let thread = thread::Builder::new().name("calls".into());
        if thread.spawn(move || shared.work()).is_ok() {
            state.threads += 1;
        }
    }

    /// Whether a call that is in time and matches is still out.
    pub fn any_in_time(&self, matches: impl Fn(&K) -> bool) -> bool {
        let state = self.shared.lock();
        let mut out = state.out.iter();
        out.any(|(key, out)| !out.overdue && matches(key))
    }

    /// Whether a call that matches is out, in time or not.
    pub fn any_out(&self, matches: impl Fn(&K) -> bool) -> bool {
        self.shared.lock().out.keys().any(matches)
    }

    /// Whether the call under `key` is out and overdue.
    pub fn is_overdue(&self, key: &K) -> bool {
        self.shared
            .lock()
            .out
            .get(key)
            .is_some_and(|out| out.overdue)
    }

    /// The next thing that happens to a call; pending while none is out.
    /// Cancel safe.
    pub async fn next(&mut self) -> Outcome<K, T> {
        loop {
            let (outcome, look) = self.look();
            if let Some(outcome) = outcome {
                return outcome;
            }
            tokio::select! {
                () = self.shared.answers.notified() => {}
                () = at(look) => {}
            }
        }
    }

    /// A call that has come back already: no clock is looked at.
    pub fn returned(&mut self) -> Option<Outcome<K, T>> {
        self.shared.lock().take_returned()
    }

    /// What has happened, or else when to look again.
    fn look(&self) -> (Option<Outcome<K, T>>, Option<Instant>) {
        let now = Instant::now();
        let mut state = self.shared.lock();
        if let Some(returned) = state.take_returned() {
            return (Some(returned), None);
        }
        state.returned_since = None;
        state.leave_slow(now);
        if let Some(key) = state.overdue(now, self.deadline) {
            self.see_to_a_thread(state);
            return (Some(Outcome::Overdue(key)), None);
        }
        let started = state.out.values().filter_map(|out| {
            let wait = match (out.slow, out.overdue) {
                (false, _) => SLOW,
                (true, false) => self.deadline,
                (true, true) => return None,
            };
            // One that waits starts at any moment, if there is a thread.
            Some(out.started.unwrap_or(now) + wait.min(self.deadline))
        });
        let look = started.min();
        self.see_to_a_thread(state);
        (None, look)
    }
}

impl<K: Clone + Eq + Hash, T: 'static> State<K, T> {
    fn take_returned(&mut self) -> Option<Outcome<K, T>> {
        let (key, value) = self.returned.pop_front()?;
        self.out.remove(&key);
        Some(match value {
            Some(value) => Outcome::Returned(key, value),
            None => Outcome::Panicked(key),
        })
    }

    /// Leaves the threads of calls that are slow with them.
    fn leave_slow(&mut self, now: Instant) {
        let is_slow = |out: &&mut Out| {
            let out_for = out.started.map(|started| now.duration_since(started));
            !out.slow && out_for.is_some_and(|out_for| out_for >= SLOW)
        };
        let mut left = 0;
        for out in self.out.values_mut().filter(is_slow) {
            out.slow = true;
            left += 1;
        }
        self.threads = self.threads.saturating_sub(left);
    }

    /// One whose deadline has passed, for the first time.
    fn overdue(&mut self, now: Instant, deadline: Duration) -> Option<K> {
        let is_overdue = |out: &Out| {
            let out_for = out.started.map(|started| now.duration_since(started));
            !out.overdue && out_for.is_some_and(|out_for| out_for >= deadline)
        };
        let (key, out) = self.out.iter_mut().find(|(_, out)| is_overdue(out))?;
        out.overdue = true;
        Some(key.clone())
    }

    /// Whether there are answers that need not wait for others.
    fn is_to_be_taken(&mut self) -> bool {
        if self.returned.is_empty() {
            return false;
        }
        let now = Instant::now();
        let since = *self.returned_since.get_or_insert(now);
        self.waiting.is_empty() || now.duration_since(since) >= TOGETHER
    }

    /// The call that is repeated, unless it is out.
    fn repetition(&self) -> Option<&Repeated<K, T>> {
        let repeated = self.repeated.as_ref();
        repeated.filter(|repeated| !self.out.contains_key(&repeated.key))
    }

    /// Begins it.
    fn begin_repetition(&mut self) -> Option<(K, Call<T>)> {
        let Repeated { key, call, .. } = self.repetition()?;
        let (key, call) = (key.clone(), call.clone());
        self.idle = false;
        let out = Out {
            started: Some(Instant::now()),
            ..Out::default()
        };
        self.out.insert(key.clone(), out);
        Some((key, Box::new(move || call())))
    }

    /// Takes in an answer, None if the call panicked. Whether its thread is to make
    /// other calls.
    fn came_back(&mut self, key: K, value: Option<Option<T>>) -> bool {
        let was_slow = self.out.get(&key).is_some_and(|out| out.slow);
        if let Some(None) = value {
            self.out.remove(&key);
        } else {
            self.repeated = self.repeated.take().filter(|repeated| repeated.key != key);
            self.returned.push_back((key, value.flatten()));
        }
        let needed = !was_slow || self.threads == 0;
        if was_slow && needed {
            self.threads += 1;
        }
        needed
    }
}

impl<K: Clone + Eq + Hash, T: 'static> Shared<K, T> {
    /// What a thread does.
    fn work(&self) {
        while let Some((key, call)) = self.next_call() {
            let value = catch_unwind(AssertUnwindSafe(call)).ok();
            let mut state = self.lock();
            let goes_on = state.came_back(key, value);
            let told = state.is_to_be_taken();
            drop(state);
            if told {
                self.answers.notify_one();
            }
            if !goes_on {
                return;
            }
        }
    }

    /// Waits for a call to make. None: this thread is needed no more.
    fn next_call(&self) -> Option<(K, Call<T>)> {
        let mut state = self.lock();
        loop {
            if state.closed {
                return None;
            }
            if let Some((key, call)) = state.waiting.pop_front() {
                if let Some(out) = state.out.get_mut(&key) {
                    out.started = Some(Instant::now());
                }
                return Some((key, call));
            }
            state.idle = true;
            let again = state.repetition().map(|repeated| repeated.after);
            let time = again.or((!state.steady).then_some(IDLE));
            let timed_out;
            (state, timed_out) = self.wait(state, time);
            if !timed_out || !state.waiting.is_empty() || state.closed {
                continue;
            }
            if let Some(call) = state.begin_repetition() {
                return Some(call);
            }
            if !state.steady {
                state.threads = state.threads.saturating_sub(1);
                return None;
            }
        }
    }
}

impl<K, T> Drop for Calls<K, T> {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.work.notify_all();
    }
}

/// Waits for the time, if there is one.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time.into()).await,
        None => pending().await,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn a_call_that_hangs_is_said_once_and_not_repeated_and_others_go_on() {
        let mut calls = Calls::new(Duration::from_millis(20));
        let (release, held) = mpsc::channel::<()>();
        assert!(calls.start("hangs", move || held.recv().is_ok()));
        assert!(matches!(calls.next().await, Outcome::Overdue("hangs")));
        assert!(calls.is_overdue(&"hangs"));
        assert!(
            !calls.start("hangs", || true),
            "a second call under the key of one that hangs"
        );
        assert!(calls.start("answers", || true));
        assert!(matches!(
            calls.next().await,
            Outcome::Returned("answers", true)
        ));
        release.send(()).unwrap();
        assert!(matches!(
            calls.next().await,
            Outcome::Returned("hangs", true)
        ));
        assert!(
            calls.start("hangs", || true),
            "it came back, so it may be asked again"
        );
    }

    #[tokio::test]
    async fn calls_that_are_slow_hold_up_no_other_and_their_threads_end_with_them() {
        const HELD: usize = 3;
        let mut calls = Calls::new(Duration::from_secs(3600));
        let (release, held) = mpsc::channel::<()>();
        let held = Arc::new(Mutex::new(held));
        for number in 0..HELD {
            let held = held.clone();
            calls.start(number, move || drop(held.lock().map(|held| held.recv())));
        }
        assert!(calls.start(HELD, || ()));
        assert!(!calls.start(HELD, || ()), "it waits for its turn");
        assert!(calls.any_in_time(|key| *key == HELD));
        assert!(matches!(calls.next().await, Outcome::Returned(HELD, ())));
        drop(release);
        for _ in 0..HELD {
            assert!(matches!(calls.next().await, Outcome::Returned(..)));
        }
        assert_eq!(calls.shared.lock().threads, 1, "one goes on");
    }

    #[tokio::test]
    async fn a_call_that_panics_is_told_and_its_thread_goes_on() {
        let mut calls = Calls::new(DEADLINE);
        calls.start(1, || panic!("as a test"));
        assert!(matches!(calls.next().await, Outcome::Panicked(1)));
        calls.start(2, || ());
        assert!(matches!(calls.next().await, Outcome::Returned(2, ())));
    }

    #[tokio::test]
    async fn a_call_that_is_repeated_is_handed_over_when_it_has_something_to_tell() {
        const AFTER: Duration = Duration::from_millis(2);
        let mut calls = Calls::steady(DEADLINE);
        let made = Arc::new(Mutex::new(0));
        let count = made.clone();
        calls.repeat("looks", AFTER, move || {
            let mut made = count.lock().unwrap();
            *made += 1;
            (*made % 5 == 0).then_some(*made)
        });
        // The thread that repeats it is the one that makes the others.
        calls.start("first", || 0);
        assert!(matches!(calls.next().await, Outcome::Returned("first", 0)));
        assert!(matches!(calls.next().await, Outcome::Returned("looks", 5)));
        let more = tokio::time::timeout(5 * AFTER, calls.next()).await;
        assert!(more.is_err());
        assert_eq!(*made.lock().unwrap(), 5, "that was to be the last");
    }

    #[tokio::test]
    async fn a_call_is_repeated_no_more_when_that_is_said() {
        let mut calls = Calls::steady(DEADLINE);
        let (made, was_made) = mpsc::channel();
        calls.start("first", || ());
        assert!(matches!(calls.next().await, Outcome::Returned("first", ())));
        calls.repeat("looks", Duration::from_millis(1), move || {
            made.send(()).unwrap();
            None
        });
        was_made.recv().unwrap();
        was_made.recv().unwrap();
        calls.repeat_no_more();
        // It ends with the last that was under way.
        while was_made.recv().is_ok() {}
    }

    #[tokio::test]
    async fn a_call_that_is_repeated_and_hangs_holds_up_no_other_and_is_not_made_again() {
        let mut calls = Calls::steady(Duration::from_millis(20));
        let (begin, begun) = mpsc::channel();
        let (release, held) = mpsc::channel::<()>();
        let held = Mutex::new(held);
        calls.repeat("hangs", Duration::ZERO, move || {
            begin.send(()).unwrap();
            held.lock().unwrap().recv().is_err().then_some(())
        });
        calls.start("first", || ());
        assert!(matches!(calls.next().await, Outcome::Returned("first", ())));
        begun.recv().unwrap();
        assert!(calls.any_out(|key| *key == "hangs"));
        assert!(matches!(calls.next().await, Outcome::Overdue("hangs")));
        calls.start("other", || ());
        assert!(matches!(calls.next().await, Outcome::Returned("other", ())));
        assert!(begun.try_recv().is_err(), "made again beside itself");
        drop(release);
        assert!(matches!(calls.next().await, Outcome::Returned("hangs", ())));
    }
}
