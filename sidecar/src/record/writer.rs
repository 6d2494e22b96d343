//! Writes access and audit lines without making requests wait for the output.
//!
//! Requests append to a buffer in memory; one thread writes it out every 20 ms while there is something to write
//! and sleeps otherwise. Called by the record step.

use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// What may wait in memory, in bytes; access lines beyond it are dropped.
pub const BUFFER_LIMIT: usize = 4 << 20;

/// How long lines gather before they are written.
const BATCH: Duration = Duration::from_millis(20);

/// At this size the batch is written at once.
const FULL_BATCH: usize = 1 << 20;

/// Memory kept between batches, so that a burst does not stay in the resident size.
const KEPT: usize = 64 << 10;

/// How long [`AccessWriter`] tries to write the rest when it is dropped.
const LAST_FLUSH: Duration = Duration::from_secs(2);

/// Whether a line may be lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Priority {
    /// Dropped and counted when the output is too slow.
    Access,
    /// Kept, whatever memory it takes.
    Audit,
}

/// The batching writer. Dropping it writes the rest.
pub struct AccessWriter {
    shared: Arc<Shared>,
}

/// Losses since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Losses {
    /// Access lines dropped because [`BUFFER_LIMIT`] was reached.
    pub dropped: u64,
    /// Batches that the output did not take.
    pub failed_writes: u64,
    /// Lines in those batches, audit lines among them.
    pub unwritten: u64,
}

struct Shared {
    state: Mutex<State>,
    /// Something to write, to flush or to close.
    wake: Condvar,
    /// A batch is written.
    done: Condvar,
    dropped: AtomicU64,
    failed_writes: AtomicU64,
    unwritten: AtomicU64,
}

#[derive(Default)]
struct State {
    buffer: Vec<u8>,
    /// Bytes of whole lines in `buffer`; what follows is of a caller that panicked.
    whole: usize,
    lines: u64,
    writing: bool,
    /// Do not wait for the batch to fill.
    hurry: bool,
    closing: bool,
}

impl AccessWriter {
    /// Writes to standard output, one `write` per batch.
    pub fn stdout() -> io::Result<Self> {
        // A duplicate of the descriptor, since `Stdout` adds a buffer and a lock of its own.
        Self::new(File::from(io::stdout().as_fd().try_clone_to_owned()?))
    }

    /// Writes to `out` from a thread of its own. Fails if no thread can be started.
    pub fn new(out: impl Write + Send + 'static) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            wake: Condvar::new(),
            done: Condvar::new(),
            dropped: AtomicU64::new(0),
            failed_writes: AtomicU64::new(0),
            unwritten: AtomicU64::new(0),
        });
        let thread = shared.clone();
        thread::Builder::new()
            .name("access-log".to_owned())
            .spawn(move || thread.write_batches(out))?;
        Ok(Self { shared })
    }

    /// Appends the line that `write` produces, without line break, and returns whether it was taken.
    ///
    /// `write` only appends; it runs under a lock and should do no more than format.
    pub fn line(&self, priority: Priority, write: impl FnOnce(&mut Vec<u8>)) -> bool {
        let mut state = self.shared.lock();
        let whole = state.whole;
        if priority == Priority::Access && whole >= BUFFER_LIMIT {
            drop(state);
            self.shared.dropped.fetch_add(1, Ordering::Relaxed);
            return false;
        }
        state.buffer.truncate(whole);
        write(&mut state.buffer);
        state.buffer.push(b'\n');
        state.whole = state.buffer.len();
        state.lines += 1;
        let wake = whole == 0 || (whole < FULL_BATCH && state.whole >= FULL_BATCH);
        drop(state);
        if wake {
            self.shared.wake.notify_one();
        }
        true
    }

    /// Waits until everything is handed to the output, at most `limit`. True if it is.
    pub fn flush(&self, limit: Duration) -> bool {
        let mut state = self.shared.lock();
        state.hurry = true;
        self.shared.wake.notify_one();
        let (_state, waited) = self
            .shared
            .done
            .wait_timeout_while(state, limit, |state| state.whole > 0 || state.writing)
            .unwrap_or_else(PoisonError::into_inner);
        !waited.timed_out()
    }

    /// What was lost so far.
    pub fn losses(&self) -> Losses {
        Losses {
            dropped: self.shared.dropped.load(Ordering::Relaxed),
            failed_writes: self.shared.failed_writes.load(Ordering::Relaxed),
            unwritten: self.shared.unwritten.load(Ordering::Relaxed),
        }
    }
}

impl Drop for AccessWriter {
    fn drop(&mut self) {
        self.flush(LAST_FLUSH);
        self.shared.lock().closing = true;
        self.shared.wake.notify_one();
    }
}

impl fmt::Debug for AccessWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AccessWriter")
            .field("losses", &self.losses())
            .finish_non_exhaustive()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_batches(&self, mut out: impl Write) {
        let mut batch = Vec::new();
        while let Some(lines) = self.next_batch(&mut batch) {
            if out.write_all(&batch).and_then(|()| out.flush()).is_err() {
                // Nobody reads any more, or the disk is full: said in the metrics, tried again with the next batch.
                self.failed_writes.fetch_add(1, Ordering::Relaxed);
                self.unwritten.fetch_add(lines, Ordering::Relaxed);
            }
            batch.clear();
            batch.shrink_to(KEPT);
            self.lock().writing = false;
            self.done.notify_all();
        }
    }

    /// Swaps the gathered lines into the empty `batch` and returns their number; `None` at the end.
    fn next_batch(&self, batch: &mut Vec<u8>) -> Option<u64> {
        let state = self
            .wake
            .wait_while(self.lock(), |state| state.whole == 0 && !state.closing)
            .unwrap_or_else(PoisonError::into_inner);
        let (mut state, _) = self
            .wake
            .wait_timeout_while(state, BATCH, |state| {
                state.whole < FULL_BATCH && !state.hurry && !state.closing
            })
            .unwrap_or_else(PoisonError::into_inner);
        if state.whole == 0 {
            return None;
        }
        let whole = std::mem::take(&mut state.whole);
        state.buffer.truncate(whole);
        std::mem::swap(&mut state.buffer, batch);
        state.writing = true;
        state.hurry = false;
        Some(std::mem::take(&mut state.lines))
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{self, AssertUnwindSafe};
    use std::sync::mpsc;

    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    /// Passes each write on to a channel; fails or waits as told.
    struct Output {
        sink: mpsc::Sender<Vec<u8>>,
        gate: Option<mpsc::Receiver<()>>,
        broken: bool,
    }

    impl Write for Output {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.broken {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            if let Some(gate) = &self.gate {
                let _ = gate.recv();
            }
            let _ = self.sink.send(bytes.to_vec());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn writer(
        gate: Option<mpsc::Receiver<()>>,
        broken: bool,
    ) -> (AccessWriter, mpsc::Receiver<Vec<u8>>) {
        let (sink, batches) = mpsc::channel();
        let writer = AccessWriter::new(Output { sink, gate, broken }).unwrap();
        (writer, batches)
    }

    fn push(writer: &AccessWriter, priority: Priority, text: &str) -> bool {
        writer.line(priority, |buffer| buffer.extend_from_slice(text.as_bytes()))
    }

    #[test]
    fn lines_of_a_burst_go_out_in_one_write_and_in_order() {
        let (writer, written) = writer(None, false);
        for text in ["a", "b", "c"] {
            assert!(push(&writer, Priority::Access, text));
        }
        assert_eq!(written.recv_timeout(SOON).unwrap(), b"a\nb\nc\n");
        push(&writer, Priority::Audit, "d");
        assert_eq!(written.recv_timeout(SOON).unwrap(), b"d\n");
    }

    #[test]
    fn dropping_the_writer_writes_the_rest() {
        let (writer, written) = writer(None, false);
        push(&writer, Priority::Access, "last");
        drop(writer);
        assert_eq!(written.try_recv().unwrap(), b"last\n");
        assert!(written.recv_timeout(SOON).is_err(), "the thread has ended");
    }

    #[test]
    fn a_stuck_output_costs_access_lines_but_no_audit_lines() {
        let (open, gate) = mpsc::channel();
        let (writer, written) = writer(Some(gate), false);
        let long = "x".repeat(BUFFER_LIMIT / 2);
        let mut taken = 0;
        while push(&writer, Priority::Access, &long) {
            taken += 1;
        }
        assert!((2..=6).contains(&taken), "{taken}");
        assert_eq!(writer.losses().dropped, 1);
        assert!(push(&writer, Priority::Audit, "audit"));
        assert!(!writer.flush(Duration::from_millis(10)));
        drop(open);
        assert!(writer.flush(SOON));
        let all: Vec<u8> = written.try_iter().flatten().collect();
        assert!(all.ends_with(b"x\naudit\n"));
        assert_eq!(all.len(), taken * (long.len() + 1) + "audit\n".len());
        assert!(push(&writer, Priority::Access, "again"));
    }

    #[test]
    fn a_broken_output_is_counted_and_does_not_stop_the_writer() {
        let (writer, _written) = writer(None, true);
        for round in 1..=2 {
            push(&writer, Priority::Access, "a");
            push(&writer, Priority::Audit, "b");
            assert!(writer.flush(SOON));
            assert_eq!(writer.losses().unwritten, round * 2);
        }
        assert!(writer.losses().failed_writes >= 2);
    }

    #[test]
    fn a_panic_while_a_line_is_formatted_loses_that_line_only() {
        let (writer, written) = writer(None, false);
        push(&writer, Priority::Access, "before");
        // Unwinds without the message of a panic, which could take longer than a batch.
        let unwound = panic::catch_unwind(AssertUnwindSafe(|| {
            writer.line(Priority::Access, |buffer| {
                buffer.extend_from_slice(b"half");
                panic::resume_unwind(Box::new(()));
            })
        }));
        assert!(unwound.is_err());
        push(&writer, Priority::Access, "after");
        assert!(writer.flush(SOON));
        let all: Vec<u8> = written.try_iter().flatten().collect();
        assert_eq!(all, b"before\nafter\n");
    }

    #[test]
    fn lines_from_many_threads_stay_whole() {
        let (writer, written) = writer(None, false);
        thread::scope(|scope| {
            for thread in 0..4 {
                let writer = &writer;
                scope.spawn(move || {
                    for _ in 0..500 {
                        push(writer, Priority::Access, &format!("{thread}").repeat(20));
                    }
                });
            }
        });
        assert!(writer.flush(SOON));
        let all: Vec<u8> = written.try_iter().flatten().collect();
        let lines: Vec<_> = all.trim_ascii_end().split(|&byte| byte == b'\n').collect();
        assert_eq!(lines.len(), 2000);
        assert!(
            lines
                .iter()
                .all(|line| line.len() == 20 && line.iter().all(|byte| *byte == line[0]))
        );
    }
}
