//! Reading ahead: threads that bring model files into memory while the weights before them are loaded.
//!
//! A mapped file that is read as it is touched comes at the pace of one read after the other, and a disk is only fast with
//! many reads at a time. The threads read the files in the order in which their tensors are loaded, so that the disk
//! never rests, whatever is being computed or copied meanwhile. What they read is the system's cache of the files, which
//! the system takes back where it needs memory: the process itself keeps none of it.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use memmap2::Advice as MapAdvice;
use rustix::fs::{Advice, fadvise};

use super::mapped::Mapped;

/// The bytes that a thread asks the disk for at a time.
const PIECE: usize = 8 << 20;
/// Tensors with fewer bytes between them are read as one.
const GAP: usize = 64 << 10;
/// The reads under way at a time: 64 MiB, enough for the disks that sustain 5 GB/s.
const THREADS: usize = 8;
/// Reading ahead keeps to this part of the machine's available memory.
const SHARE: u64 = 4;
/// How often a thread that is too far ahead looks whether it may continue.
const PAUSE: Duration = Duration::from_millis(2);

/// Where the tensors of a network lie in files, in the order in which they are loaded.
#[derive(Clone, Default)]
pub struct Places {
    regions: Vec<Region>,
    /// The bytes of tensors that were handed out so far.
    handed: Arc<AtomicU64>,
}

/// A part of a file.
#[derive(Clone)]
pub(super) struct Region {
    pub file: Arc<Mapped>,
    pub start: usize,
    pub bytes: usize,
}

impl Places {
    pub(super) fn new(regions: Vec<Region>, handed: Arc<AtomicU64>) -> Self {
        Self { regions, handed }
    }

    /// Returns the bytes of all tensors in their files.
    pub fn bytes(&self) -> u64 {
        self.regions.iter().map(|region| region.bytes as u64).sum()
    }
}

/// Threads that read ahead until they are through, or this is dropped.
pub struct ReadAhead {
    state: Arc<State>,
    threads: Vec<JoinHandle<()>>,
}

struct State {
    pieces: Vec<Region>,
    /// For each piece, the bytes of all pieces before it.
    before: Vec<u64>,
    next: AtomicUsize,
    stop: AtomicBool,
    /// The counters of the bytes that were handed out, each with its value at the start.
    handed: Vec<(Arc<AtomicU64>, u64)>,
    /// The most bytes that may be read and not handed out.
    window: u64,
}

impl ReadAhead {
    /// Starts to read the networks' files, one network after the other. `available` is the memory that the machine has
    /// left, if that is known: of files that are larger, only a part is read ahead.
    pub fn start(networks: &[Places], available: Option<u64>) -> Self {
        let pieces = pieces(networks.iter().flat_map(|places| &places.regions));
        let total: u64 = pieces.iter().map(|piece| piece.bytes as u64).sum();
        let window = match available {
            Some(available) if total > available / 2 => (available / SHARE).max(4 * PIECE as u64),
            _ => u64::MAX,
        };
        let mut sum = 0;
        let before = pieces.iter().map(|piece| {
            sum += piece.bytes as u64;
            sum - piece.bytes as u64
        });
        let before = before.collect();
        let handed =
            networks.iter().map(|places| (places.handed.clone(), places.handed.load(Ordering::Relaxed)));
        let (next, stop, handed) = (AtomicUsize::new(0), AtomicBool::new(false), handed.collect());
        let threads = THREADS.min(pieces.len());
        let state = Arc::new(State { pieces, before, next, stop, handed, window });
        let spawn = |_| {
            let state = state.clone();
            thread::Builder::new().name("read-ahead".into()).spawn(move || state.read()).ok()
        };
        // Where the system has no more threads, the loader reads by itself.
        let threads = (0..threads).filter_map(spawn).collect();
        Self { state, threads }
    }
}

impl Drop for ReadAhead {
    fn drop(&mut self) {
        self.state.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A thread that panicked has read less, and the loader has read it.
            let _ = thread.join();
        }
    }
}

impl State {
    fn read(&self) {
        loop {
            let index = self.next.fetch_add(1, Ordering::Relaxed);
            let (Some(piece), Some(before)) = (self.pieces.get(index), self.before.get(index)) else {
                return;
            };
            while before.saturating_sub(self.handed()) > self.window {
                if self.stop.load(Ordering::Relaxed) {
                    return;
                }
                thread::sleep(PAUSE);
            }
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            piece.read();
        }
    }

    fn handed(&self) -> u64 {
        self.handed.iter().map(|(handed, start)| handed.load(Ordering::Relaxed).saturating_sub(*start)).sum()
    }
}

impl Region {
    /// Brings the region into memory and into the process's map of it, so that nobody who reads it later waits.
    fn read(&self) {
        // Both calls are hints. What they did not read, or could not, is read when it is needed, and an error is told then.
        let _ = fadvise(
            self.file.file(),
            self.start as u64,
            NonZeroU64::new(self.bytes as u64),
            Advice::WillNeed,
        );
        let _ = self.file.bytes.advise_range(MapAdvice::PopulateRead, self.start, self.bytes);
    }
}

/// Returns regions as pieces of the size of a read: neighbours become one, and large ones several.
fn pieces<'a>(regions: impl Iterator<Item = &'a Region>) -> Vec<Region> {
    let mut pieces: Vec<Region> = Vec::new();
    for region in regions {
        let end = region.start + region.bytes;
        if let Some(last) = pieces.last_mut() {
            let last_end = last.start + last.bytes;
            let near =
                Arc::ptr_eq(&last.file, &region.file) && (last_end..=last_end + GAP).contains(&region.start);
            if near && end - last.start <= PIECE {
                last.bytes = end - last.start;
                continue;
            }
        }
        for start in (region.start..end).step_by(PIECE) {
            pieces.push(Region { file: region.file.clone(), start, bytes: PIECE.min(end - start) });
        }
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    fn file(dir: &std::path::Path, bytes: usize) -> Arc<Mapped> {
        let path = dir.join(format!("{bytes}.bin"));
        std::fs::write(&path, vec![7; bytes]).unwrap();
        Mapped::open(&path).unwrap()
    }

    fn region(file: &Arc<Mapped>, start: usize, bytes: usize) -> Region {
        Region { file: file.clone(), start, bytes }
    }

    #[test]
    fn neighbours_are_read_as_one_and_large_tensors_in_pieces() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (file(dir.path(), 3 * PIECE), file(dir.path(), 1000));
        let regions = [
            region(&a, 100, 50),
            region(&a, 160, 40),
            region(&a, 200 + GAP + 1, 10),
            region(&b, 0, 1000),
            region(&a, 5000, 2 * PIECE + 1),
        ];
        let found: Vec<_> = pieces(regions.iter()).iter().map(|p| (p.start, p.bytes)).collect();
        let large = [(5000, PIECE), (5000 + PIECE, PIECE), (5000 + 2 * PIECE, 1)];
        assert_eq!(found, [&[(100, 100), (200 + GAP + 1, 10), (0, 1000)][..], &large].concat());
    }

    /// Threads that wait for the loader end when they are told to, and read no further than they may.
    #[test]
    fn a_small_machine_is_not_filled() {
        let dir = tempfile::tempdir().unwrap();
        let file = file(dir.path(), 20 * PIECE);
        let handed = Arc::new(AtomicU64::new(0));
        let regions: Vec<_> = (0..20).map(|i| region(&file, i * PIECE, PIECE)).collect();
        let ahead = ReadAhead::start(&[Places::new(regions, handed.clone())], Some(16 * PIECE as u64));
        assert_eq!(ahead.state.window, 4 * PIECE as u64);
        // Pieces up to the fifth are within the window; each of eight threads holds one more that waits.
        let most = 5 + THREADS;
        let until = |count: usize| {
            let began = Instant::now();
            while ahead.state.next.load(Ordering::Relaxed) < count && began.elapsed().as_secs() < 60 {
                thread::sleep(PAUSE);
            }
            ahead.state.next.load(Ordering::Relaxed)
        };
        assert_eq!(until(most), most);
        thread::sleep(20 * PAUSE);
        assert_eq!(until(0), most, "nobody goes on before the loader does");
        handed.store(20 * PIECE as u64, Ordering::Relaxed);
        assert!(until(20) >= 20);
        drop(ahead);
    }

    #[test]
    fn nothing_to_read_takes_no_threads() {
        assert!(ReadAhead::start(&[Places::default()], None).threads.is_empty());
    }
}
