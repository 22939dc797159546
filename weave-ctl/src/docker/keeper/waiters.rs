//! Who waits for the attachment of which container, and what is under way. No I/O.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, oneshot};

/// How an attachment ended.
pub type Outcome = Result<(), String>;

/// Containers with somebody who waits, or with an attempt under way; all others have no entry.
#[derive(Default)]
pub struct Waiters {
    table: Mutex<Table>,
    /// Something has ended.
    ended: Notify,
}

#[derive(Default)]
struct Table {
    next: u64,
    entries: BTreeMap<String, Entry>,
}

#[derive(Default)]
struct Entry {
    expected: BTreeMap<u64, Waiter>,
    attempt: Option<Attempt>,
}

struct Waiter {
    sender: oneshot::Sender<Outcome>,
    /// Docker has said that the container has started.
    answered: bool,
}

struct Attempt {
    /// Another start came meanwhile.
    again: bool,
    /// It has failed, and will be made again after a pause.
    pauses: bool,
    wake: Arc<Notify>,
}

/// The start of a container that somebody is about to ask Docker for. Forgotten when dropped.
pub struct Expected {
    waiters: Arc<Waiters>,
    id: String,
    number: u64,
    receiver: oneshot::Receiver<Outcome>,
}

/// Those that an attempt will answer.
#[derive(Default)]
pub struct Taken(Vec<oneshot::Sender<Outcome>>);

impl Taken {
    /// Does nobody wait?
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(oneshot::Sender::is_closed)
    }

    /// These are answered as well.
    pub fn join(&mut self, others: Self) {
        self.0.extend(others.0);
    }

    fn answer(self, outcome: &Outcome) {
        for sender in self.0 {
            // Who has gone away needs no answer.
            let _ = sender.send(outcome.clone());
        }
    }
}

impl Waiters {
    /// Somebody waits from now on.
    pub fn expect(self: &Arc<Self>, id: &str) -> Expected {
        let (sender, receiver) = oneshot::channel();
        let mut table = self.lock();
        let number = table.next;
        table.next += 1;
        let waiter = Waiter {
            sender,
            answered: false,
        };
        let entry = table.entries.entry(id.to_owned()).or_default();
        entry.expected.insert(number, waiter);
        Expected {
            waiters: self.clone(),
            id: id.to_owned(),
            number,
            receiver,
        }
    }

    /// The container has started. `Some` if an attempt is to begin now, with what wakes it up; else the one under
    /// way goes round again.
    pub fn begin(&self, id: &str) -> Option<Arc<Notify>> {
        let mut table = self.lock();
        let entry = table.entries.entry(id.to_owned()).or_default();
        if let Some(attempt) = &mut entry.attempt {
            attempt.again = true;
            attempt.wake.notify_one();
            return None;
        }
        let wake = Arc::new(Notify::new());
        entry.attempt = Some(Attempt {
            again: false,
            pauses: false,
            wake: wake.clone(),
        });
        Some(wake)
    }

    /// Those who wait now: the attempt that begins is theirs.
    pub fn take(&self, id: &str) -> Taken {
        let mut table = self.lock();
        let Some(entry) = table.entries.get_mut(id) else {
            return Taken::default();
        };
        if let Some(attempt) = &mut entry.attempt {
            attempt.again = false;
            attempt.pauses = false;
        }
        let waiters = std::mem::take(&mut entry.expected);
        Taken(waiters.into_values().map(|waiter| waiter.sender).collect())
    }

    /// The attempt has failed, and will be made again after a pause.
    pub fn pause(&self, id: &str) {
        if let Some(attempt) = self
            .lock()
            .entries
            .get_mut(id)
            .and_then(|entry| entry.attempt.as_mut())
        {
            attempt.pauses = true;
        }
        self.ended.notify_waiters();
    }

    /// The attempt has ended so. True: go round again.
    pub fn end(&self, id: &str, taken: Taken, outcome: &Outcome) -> bool {
        let mut table = self.lock();
        let again = table.entries.get_mut(id).is_some_and(|entry| {
            let again = entry.attempt.as_ref().is_some_and(|attempt| attempt.again);
            if !again {
                entry.attempt = None;
            }
            again
        });
        table.sweep(id);
        drop(table);
        taken.answer(outcome);
        self.ended.notify_waiters();
        again
    }

    /// Containers that Docker says it has started, for somebody who still waits: their start event was lost if
    /// they are not begun.
    pub fn overdue(&self) -> Vec<String> {
        let table = self.lock();
        let entries = table.entries.iter();
        let overdue = entries.filter(|(_, entry)| entry.expected.values().any(|waiter| waiter.answered));
        overdue.map(|(id, _)| id.clone()).collect()
    }

    /// Waits until nothing of that container is under way or expected, but for what is tried again and again.
    pub async fn settled(&self, id: &str) {
        loop {
            let mut ended = std::pin::pin!(self.ended.notified());
            // Before looking, so that no end is missed.
            ended.as_mut().enable();
            let settled = |entry: &Entry| {
                let pauses = entry.attempt.as_ref().is_some_and(|attempt| attempt.pauses);
                pauses && entry.expected.is_empty()
            };
            if self.lock().entries.get(id).is_none_or(settled) {
                return;
            }
            ended.await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn sweep(&mut self, id: &str) {
        let idle = |entry: &Entry| entry.expected.is_empty() && entry.attempt.is_none();
        if self.entries.get(id).is_some_and(idle) {
            self.entries.remove(id);
        }
    }
}

impl Expected {
    /// Call this when Docker has answered that the container was started: waits until its attachment has ended.
    ///
    /// # Errors
    /// Why it could not be attached.
    pub async fn finished(mut self) -> Outcome {
        if let Some(entry) = self.waiters.lock().entries.get_mut(&self.id)
            && let Some(waiter) = entry.expected.get_mut(&self.number)
        {
            waiter.answered = true;
        }
        let outcome = (&mut self.receiver).await;
        outcome.unwrap_or_else(|_| Err("weave is stopping".to_owned()))
    }
}

impl Drop for Expected {
    fn drop(&mut self) {
        let mut table = self.waiters.lock();
        if let Some(entry) = table.entries.get_mut(&self.id) {
            entry.expected.remove(&self.number);
        }
        table.sweep(&self.id);
        drop(table);
        self.waiters.ended.notify_waiters();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_attempt_answers_those_who_waited_when_it_began() {
        let waiters = Arc::new(Waiters::default());
        let first = waiters.expect("a");
        assert!(waiters.begin("a").is_some());
        let taken = waiters.take("a");
        assert!(!taken.is_empty());
        // A restart while the attempt is under way.
        let second = tokio::spawn(waiters.expect("a").finished());
        assert!(waiters.begin("a").is_none(), "two attempts at once");
        assert!(waiters.end("a", taken, &Err("no".to_owned())), "goes round again");
        assert_eq!(first.finished().await, Err("no".to_owned()));
        let taken = waiters.take("a");
        assert!(!waiters.end("a", taken, &Ok(())));
        assert_eq!(second.await.unwrap(), Ok(()));
        waiters.settled("a").await;
        assert!(waiters.lock().entries.is_empty());
    }

    #[tokio::test]
    async fn who_gives_up_leaves_nothing() {
        let waiters = Arc::new(Waiters::default());
        let expected = waiters.expect("a");
        let settled = waiters.settled("a");
        let mut settled = std::pin::pin!(settled);
        assert!(futures_util::poll!(settled.as_mut()).is_pending());
        drop(expected);
        settled.await;
        assert!(waiters.lock().entries.is_empty() && waiters.take("a").is_empty());
    }

    #[tokio::test]
    async fn what_is_tried_again_and_again_holds_up_nobody_until_the_next_start() {
        let waiters = Arc::new(Waiters::default());
        assert!(waiters.begin("a").is_some());
        let mut taken = waiters.take("a");
        {
            let mut settled = std::pin::pin!(waiters.settled("a"));
            assert!(futures_util::poll!(settled.as_mut()).is_pending());
            waiters.pause("a");
            settled.await;
        }
        // A start: the same attempt is now that one's.
        let waiting = tokio::spawn(waiters.expect("a").finished());
        assert!(waiters.begin("a").is_none());
        taken.join(waiters.take("a"));
        let mut settled = std::pin::pin!(waiters.settled("a"));
        assert!(futures_util::poll!(settled.as_mut()).is_pending());
        assert!(!waiters.end("a", taken, &Err("taken".to_owned())));
        settled.await;
        assert_eq!(waiting.await.unwrap(), Err("taken".to_owned()));
    }

    #[tokio::test]
    async fn only_answered_starts_are_overdue() {
        let waiters = Arc::new(Waiters::default());
        let _asked = waiters.expect("a");
        let answered = tokio::spawn(waiters.expect("b").finished());
        while waiters.overdue().is_empty() {
            tokio::task::yield_now().await;
        }
        assert_eq!(waiters.overdue(), ["b"]);
        assert!(waiters.begin("b").is_some());
        let taken = waiters.take("b");
        waiters.end("b", taken, &Ok(()));
        assert_eq!(answered.await.unwrap(), Ok(()));
    }
}
