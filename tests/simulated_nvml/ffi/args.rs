//! What C callers pass, and how answers are written to it.

use std::ffi::{CStr, c_char, c_uint};
use std::mem::MaybeUninit;

use crate::state::Return;

/// A function's outcome before it becomes an `nvmlReturn_t`.
pub(super) type Answer = Result<(), Return>;
/// A place for an answer, or null.
pub(super) type Out<'a, T> = Option<&'a mut MaybeUninit<T>>;
/// Read, then written; or null.
pub(super) type InOut<'a, T> = Option<&'a mut T>;

/// Writes an answer.
pub(super) fn put<T>(out: Out<'_, T>, value: T) -> Answer {
    out.ok_or(Return::InvalidArgument)?.write(value);
    Ok(())
}

/// Writes two answers, or neither.
pub(super) fn put_both<A, B>(a: Out<'_, A>, b: Out<'_, B>, (x, y): (A, B)) -> Answer {
    let (Some(a), Some(b)) = (a, b) else {
        return Err(Return::InvalidArgument);
    };
    a.write(x);
    b.write(y);
    Ok(())
}

/// Writes a C string into a buffer of `length` characters.
pub(super) fn put_string(buffer: *mut c_char, length: c_uint, text: &str) -> Answer {
    if buffer.is_null() {
        return Err(Return::InvalidArgument);
    }
    if text.len() >= length as usize {
        return Err(Return::InsufficientSize);
    }
    // SAFETY: the buffer holds `length` characters, which are more than the
    // text has, and our text does not overlap the caller's buffer.
    unsafe {
        buffer.copy_from_nonoverlapping(text.as_ptr().cast(), text.len());
        buffer.add(text.len()).write(0);
    }
    Ok(())
}

/// Reads a C string.
pub(super) fn read_string<'a>(text: *const c_char) -> Result<&'a str, Return> {
    if text.is_null() {
        return Err(Return::InvalidArgument);
    }
    // SAFETY: not null, so a C string, which outlives the call that it was
    // passed to.
    let text = unsafe { CStr::from_ptr(text) };
    text.to_str().map_err(|_| Return::InvalidArgument)
}

/// The elements of an array that is read and written.
pub(super) fn array<'a, T>(first: *mut T, count: usize) -> Result<&'a mut [T], Return> {
    if first.is_null() || count == 0 {
        return Err(Return::InvalidArgument);
    }
    // SAFETY: not null, so an array of `count` elements, the caller's to lend
    // during the call.
    Ok(unsafe { std::slice::from_raw_parts_mut(first, count) })
}

/// Writes a list: `count` is the room on the way in and the number of items on
/// the way out; without an array, the number alone is asked for.
pub(super) fn put_list<T: Copy>(count: InOut<'_, c_uint>, first: *mut T, items: &[T]) -> Answer {
    let count = count.ok_or(Return::InvalidArgument)?;
    let room = std::mem::replace(count, items.len() as c_uint) as usize;
    if first.is_null() || items.is_empty() {
        return Ok(());
    }
    if room < items.len() {
        return Err(Return::InsufficientSize);
    }
    array(first, items.len())?.copy_from_slice(items);
    Ok(())
}

/// A text in an array inside a structure, cut where it does not fit.
pub(super) fn chars<const LENGTH: usize>(text: &str) -> [c_char; LENGTH] {
    let mut chars = [0; LENGTH];
    for (to, from) in chars.iter_mut().zip(text.bytes()).take(LENGTH - 1) {
        *to = from as c_char;
    }
    chars
}

/// What a structure's `version` field says: its size and its number.
pub(super) const fn version_of<T>(number: c_uint) -> c_uint {
    size_of::<T>() as c_uint | number << 24
}
