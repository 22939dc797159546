//! Saving beside the loop: a thread of its own writes what IPAM has changed and waits for the disk.
//!
//! Meanwhile the loop goes on, however slow the disk is. What must not leave before the changes are on disk
//! (answers, and messages that were encoded from the state with the changes) is held until then. What comes
//! in meanwhile goes into the next change set: one transaction for all requests of that time.

use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use anyhow::Context;
use tokio::sync::mpsc as async_mpsc;

use crate::ipam::persist::Changes;
use crate::mesh::ConnId;
use crate::store::{Store, StoreError};

/// An answer that may be given once what it tells is on disk.
pub type Answering = Box<dyn FnOnce() + Send>;

/// What waits for the disk.
#[derive(Default)]
pub struct Held {
    /// To clients.
    pub answers: Vec<Answering>,
    /// Bodies of messages to neighbours.
    pub messages: Vec<(ConnId, Vec<u8>)>,
}

/// The thread, and what waits for it.
pub struct Saver {
    jobs: mpsc::Sender<Changes>,
    results: async_mpsc::Receiver<Result<(), StoreError>>,
    thread: JoinHandle<()>,
    held: Option<Held>,
}

impl Saver {
    /// Starts the thread; it saves into the store.
    pub fn new(store: Arc<Store>) -> anyhow::Result<Self> {
        Self::start(move |changes| store.save_ipam(changes))
    }

    fn start(save: impl Fn(&Changes) -> Result<(), StoreError> + Send + 'static) -> anyhow::Result<Self> {
        let (jobs, to_do) = mpsc::channel::<Changes>();
        let (done, results) = async_mpsc::channel(1);
        let thread = std::thread::Builder::new()
            .name("saver".to_owned())
            .spawn(move || {
                while let Ok(changes) = to_do.recv() {
                    if done.blocking_send(save(&changes)).is_err() {
                        return;
                    }
                }
            })
            .context("cannot start the thread that saves")?;
        Ok(Self {
            jobs,
            results,
            thread,
            held: None,
        })
    }

    /// Is a change set on its way to the disk?
    pub fn is_busy(&self) -> bool {
        self.held.is_some()
    }

    /// Begins to save; `held` comes back from [`Saver::saved`].
    ///
    /// # Errors
    /// If the thread is gone. So for all of these.
    pub fn save(&mut self, changes: Changes, held: Held) -> anyhow::Result<()> {
        self.held = Some(held);
        self.jobs.send(changes).context("the thread that saves has ended")
    }

    /// Waits until what is on its way is on disk, for ever if nothing is. Cancelling it loses nothing.
    ///
    /// # Errors
    /// If it could not be saved: then nothing that was held may be let out.
    pub async fn saved(&mut self) -> anyhow::Result<Held> {
        if self.held.is_none() {
            std::future::pending::<()>().await;
        }
        let result = self.results.recv().await;
        result
            .context("the thread that saves has ended")?
            .context("Error persisting ring data")?;
        Ok(self.held.take().unwrap_or_default())
    }

    /// Waits for what is on its way, if anything is, and ends the thread.
    ///
    /// # Errors
    /// As [`Saver::saved`].
    pub async fn finish(mut self) -> anyhow::Result<Held> {
        let held = match self.is_busy() {
            true => self.saved().await,
            false => Ok(Held::default()),
        };
        drop(self.jobs);
        // It waits for nothing any more.
        let _ = self.thread.join();
        held
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::ipam::address::Range;
    use crate::ipam::persist::{Head, Persisted};
    use crate::mesh::name::PeerName;

    fn changes(seeds: u64) -> Changes {
        let name = |n| PeerName::from_u64(n).unwrap();
        Changes::all(Persisted::new(Head {
            peer: name(1),
            range: Range { start: 0, end: 64 },
            seeds: (1..=seeds).map(name).collect(),
        }))
    }

    #[tokio::test]
    async fn what_is_held_comes_back_when_the_change_is_on_disk() {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(dir.path().join("weave.redb")).unwrap());
        let mut saver = Saver::new(store.clone()).unwrap();
        let seeds = || store.load().unwrap().ipam.unwrap().ring.seeds.len();
        let answered = Arc::new(AtomicU32::new(0));
        for n in 1..20 {
            let held = Held {
                messages: vec![(n, vec![1])],
                ..counting(&answered)
            };
            saver.save(changes(n), held).unwrap();
            assert!(saver.is_busy());
            let held = saver.saved().await.unwrap();
            assert_eq!(seeds(), usize::try_from(n).unwrap());
            assert_eq!(held.messages, [(n, vec![1])]);
            held.answers.into_iter().for_each(|answer| answer());
        }
        assert_eq!(answered.load(Ordering::SeqCst), 19);
        saver.save(changes(30), Held::default()).unwrap();
        saver.finish().await.unwrap();
        assert_eq!(seeds(), 30);
    }

    fn counting(count: &Arc<AtomicU32>) -> Held {
        let count = count.clone();
        let answer: Answering = Box::new(move || {
            count.fetch_add(1, Ordering::SeqCst);
        });
        Held {
            answers: vec![answer],
            messages: Vec::new(),
        }
    }

    #[tokio::test]
    async fn a_disk_that_takes_its_time_holds_nobody_else_up() {
        let (disk, is_done) = mpsc::channel::<()>();
        let wait = std::sync::Mutex::new(is_done);
        let mut saver = Saver::start(move |_| {
            let _ = wait.lock().unwrap().recv();
            Ok(())
        })
        .unwrap();
        let answered = Arc::new(AtomicU32::new(0));
        saver.save(changes(1), counting(&answered)).unwrap();
        // The loop's other events come first, again and again, and nothing is let out.
        for _ in 0..10 {
            tokio::select! {
                biased;
                _ = saver.saved() => panic!("it is not on disk"),
                () = tokio::task::yield_now() => {}
            }
            assert!(saver.is_busy() && answered.load(Ordering::SeqCst) == 0);
        }
        disk.send(()).unwrap();
        let held = saver.saved().await.unwrap();
        assert_eq!(held.answers.len(), 1);
    }

    #[tokio::test]
    async fn what_could_not_be_saved_is_never_let_out() {
        let full = || {
            Err(StoreError::Io(
                "/d/weave.redb".into(),
                "No space left on device".to_owned(),
            ))
        };
        let mut saver = Saver::start(move |_| full()).unwrap();
        let answered = Arc::new(AtomicU32::new(0));
        saver.save(changes(1), counting(&answered)).unwrap();
        let Err(error) = saver.saved().await else {
            panic!("it was not saved");
        };
        let text = format!("{error:#}");
        assert!(
            text.starts_with("Error persisting ring data: cannot use /d/weave.redb: No space"),
            "{text}"
        );
        // The daemon ends now.
        drop(saver);
        assert_eq!(answered.load(Ordering::SeqCst), 0);
    }
}
