//! The buffer that all joins of a thread read into.

use std::cell::Cell;

/// Bytes moved at a time, and the most that is held per direction for a slow reader.
///
/// Larger than what a socket usually has to offer, since a read that fills the buffer costs a second one to learn that
/// there was no more.
pub const SCRATCH: usize = 64 << 10;

thread_local! {
    static BUFFER: Cell<Option<Box<[u8]>>> = const { Cell::new(None) };
}

/// Runs `use_it` on the thread's buffer, whose contents are arbitrary.
pub(super) fn with<T>(use_it: impl FnOnce(&mut [u8]) -> T) -> T {
    // Taken out meanwhile, so that a stream that is a join itself finds none and makes its own.
    let mut buffer = BUFFER.take().unwrap_or_else(|| vec![0; SCRATCH].into_boxed_slice());
    let result = use_it(&mut buffer);
    BUFFER.set(Some(buffer));
    result
}
