//! The keys that leave a container without ending it.

/// What podman and docker leave with.
pub const DEFAULT: &str = "ctrl-p,ctrl-q";

/// Looks for a sequence of keys in what is typed.
#[derive(Debug)]
pub struct Keys {
    sequence: Vec<u8>,
    /// Typed, and perhaps the beginning of the sequence.
    held: Vec<u8>,
}

/// What is to be done with input.
#[derive(Debug, PartialEq, Eq)]
pub enum Typed {
    Pass(Vec<u8>),
    /// The sequence is complete; this came before it.
    Leave(Vec<u8>),
}

impl Keys {
    /// Reads `ctrl-p,ctrl-q`, `ctrl-],x` and the like; an empty word stands for no such keys.
    pub fn parse(text: &str) -> Result<Keys, String> {
        let words = text.split(',').filter(|_| !text.is_empty());
        let sequence =
            words.map(|word| key(word).ok_or_else(|| format!("'{word}' is no key"))).collect::<Result<_, _>>()?;
        Ok(Keys { sequence, held: Vec::new() })
    }

    /// Takes what was typed. The beginning of a sequence is held back until it is known to be none.
    pub fn feed(&mut self, input: &[u8]) -> Typed {
        let mut pass = Vec::with_capacity(input.len());
        if self.sequence.is_empty() {
            pass.extend_from_slice(input);
            return Typed::Pass(pass);
        }
        for &byte in input {
            self.held.push(byte);
            while !self.sequence.starts_with(&self.held) {
                pass.push(self.held.remove(0));
            }
            if self.held == self.sequence {
                self.held.clear();
                return Typed::Leave(pass);
            }
        }
        Typed::Pass(pass)
    }
}

fn key(word: &str) -> Option<u8> {
    match word.as_bytes() {
        [byte] => Some(*byte),
        [prefix @ .., byte] if prefix.eq_ignore_ascii_case(b"ctrl-") => match byte.to_ascii_uppercase() {
            // A control key is its letter without the two upper bits.
            letter @ b'@'..=b'_' => Some(letter & 0x1f),
            _ => None,
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feed(keys: &mut Keys, input: &[u8]) -> Typed {
        keys.feed(input)
    }

    #[test]
    fn keys_are_read() {
        assert_eq!(Keys::parse("ctrl-p,ctrl-q").unwrap().sequence, [16, 17]);
        assert_eq!(Keys::parse("ctrl-],x,CTRL-@,ctrl-[").unwrap().sequence, [29, b'x', 0, 27]);
        assert!(Keys::parse("").unwrap().sequence.is_empty());
        assert_eq!(Keys::parse("ctrl-1").unwrap_err(), "'ctrl-1' is no key");
        assert_eq!(Keys::parse("a,,b").unwrap_err(), "'' is no key");
    }

    #[test]
    fn a_sequence_is_found_across_reads_and_nothing_else_is_lost() {
        let mut keys = Keys::parse(DEFAULT).unwrap();
        assert_eq!(feed(&mut keys, b"ab\x10"), Typed::Pass(b"ab".to_vec()));
        assert_eq!(feed(&mut keys, b"c"), Typed::Pass(b"\x10c".to_vec()));
        assert_eq!(feed(&mut keys, b"\x10\x10"), Typed::Pass(b"\x10".to_vec()));
        assert_eq!(feed(&mut keys, b"\x11rest"), Typed::Leave(Vec::new()));
        let mut twice = Keys::parse("a,a,b").unwrap();
        assert_eq!(feed(&mut twice, b"aaab"), Typed::Leave(b"a".to_vec()));
        assert_eq!(feed(&mut Keys::parse("").unwrap(), b"\x10\x11"), Typed::Pass(b"\x10\x11".to_vec()));
    }
}
