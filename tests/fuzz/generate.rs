//! How cases are made.

use fastrand::Rng;

/// The most bytes of a case: more than any limit that is tried.
const LONGEST: usize = 20_000;

/// One of several.
pub(crate) fn one<'a, T: ?Sized>(rng: &mut Rng, of: &[&'a T]) -> &'a T {
    of[rng.usize(..of.len())]
}

/// One of these texts with a few changes, made of `words` where they are not made of bytes. Now and then none.
pub(crate) fn changed(rng: &mut Rng, texts: &[&str], words: &[&str]) -> Vec<u8> {
    let mut bytes = one(rng, texts).as_bytes().to_vec();
    for _ in 0..rng.usize(..5) {
        change(rng, &mut bytes, texts, words);
    }
    bytes.truncate(LONGEST);
    bytes
}

/// The same, as text.
pub(crate) fn changed_text(rng: &mut Rng, texts: &[&str], words: &[&str]) -> String {
    let bytes = changed(rng, texts, words);
    String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

fn change(rng: &mut Rng, bytes: &mut Vec<u8>, texts: &[&str], words: &[&str]) {
    let at = rng.usize(..=bytes.len());
    let part = at..rng.usize(at..=bytes.len().min(at + 40));
    match rng.u8(..10) {
        0 if at < bytes.len() => bytes[at] ^= 1 << rng.u8(..8),
        1 => bytes.insert(at, rng.u8(..)),
        2 => drop(bytes.drain(part)),
        3 => {
            let twice = bytes[part.clone()].to_vec();
            drop(bytes.splice(part.end..part.end, twice));
        }
        4 => bytes.truncate(at),
        5 => {
            let other = one(rng, texts).as_bytes();
            let from = rng.usize(..=other.len());
            bytes.truncate(at);
            bytes.extend_from_slice(&other[from..]);
        }
        // Seldom, because it is long.
        6 if rng.u8(..32) == 0 => {
            let many = one(rng, words).repeat(rng.usize(..600));
            drop(bytes.splice(at..at, many.into_bytes()));
        }
        7 => {
            let letter = rng.char(..).to_string();
            drop(bytes.splice(part, letter.into_bytes()));
        }
        8 => drop(bytes.splice(part, one(rng, words).bytes())),
        _ => drop(bytes.splice(at..at, one(rng, words).bytes())),
    }
}
