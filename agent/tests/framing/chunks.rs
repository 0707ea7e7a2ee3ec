//! Chunked bodies read a second time, line by line (RFC 9112 §7.1), by another way than the agent's.

/// Not a chunked body.
#[derive(Debug)]
pub(crate) struct Broken;

/// Where the body at the beginning of `bytes` ends, or `None` where it goes on.
pub(crate) fn end(bytes: &[u8]) -> Result<Option<usize>, Broken> {
    let mut at = 0;
    loop {
        let Some(line) = line(&bytes[at..], is_size_line)? else { return Ok(None) };
        let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
        let size = std::str::from_utf8(&line[..digits]).ok().and_then(|text| usize::from_str_radix(text, 16).ok());
        let size = size.ok_or(Broken)?;
        at += line.len() + 2;
        if size == 0 {
            break;
        }
        let Some(behind) = at.checked_add(size).and_then(|end| bytes.get(end..)) else { return Ok(None) };
        if !behind.starts_with(&b"\r\n"[..behind.len().min(2)]) {
            return Err(Broken);
        }
        if behind.len() < 2 {
            return Ok(None);
        }
        at += size + 2;
    }
    loop {
        let Some(line) = line(&bytes[at..], is_trailer)? else { return Ok(None) };
        at += line.len() + 2;
        if line.is_empty() {
            return Ok(Some(at));
        }
    }
}

/// A line without its end. `fits` says whether a line may begin like this.
fn line(bytes: &[u8], fits: fn(&[u8], bool) -> bool) -> Result<Option<&[u8]>, Broken> {
    match bytes.iter().position(|&byte| byte == b'\r') {
        None if fits(bytes, false) => Ok(None),
        Some(at) if fits(&bytes[..at], true) => match bytes.get(at + 1) {
            None => Ok(None),
            Some(b'\n') => Ok(Some(&bytes[..at])),
            Some(_) => Err(Broken),
        },
        _ => Err(Broken),
    }
}

fn is_size_line(line: &[u8], ended: bool) -> bool {
    let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    let extension = &line[digits..];
    let begins = if line.is_empty() { !ended } else { (1..=15).contains(&digits) };
    begins && (extension.is_empty() || extension[0] == b';') && extension.iter().all(is_text)
}

/// Names are not looked into behind their first byte: nothing about the length depends on them.
fn is_trailer(line: &[u8], _ended: bool) -> bool {
    const PUNCTUATION: &[u8] = b"!#$%&'*+-.^_`|~";
    line.first().is_none_or(|byte| byte.is_ascii_alphanumeric() || PUNCTUATION.contains(byte))
        && line.iter().all(is_text)
}

fn is_text(byte: &u8) -> bool {
    *byte == b'\t' || (*byte >= b' ' && *byte != 0x7f)
}
