//! Tokens: what a URL holds instead of a request.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::error::{Context, Error, Result};

/// Requests that may wait for their client at a time.
const MOST: usize = 1024;

/// Requests that wait to be taken, each once and for a short time.
#[derive(Debug)]
pub struct Tokens<T> {
    lifetime: Duration,
    waiting: Mutex<HashMap<String, (Instant, T)>>,
}

impl<T> Tokens<T> {
    pub fn new(lifetime: Duration) -> Tokens<T> {
        Tokens { lifetime, waiting: Mutex::default() }
    }

    /// Keeps a request and names it with 128 random bits.
    pub fn keep(&self, request: T, now: Instant) -> Result<String> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes).context(|| "Failed to get random bytes for a streaming token")?;
        let token: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.retain(|_, (since, _)| self.alive(*since, now));
        if waiting.len() >= MOST {
            return Err(Error::Unavailable(format!("{MOST} streaming requests wait for their clients already")));
        }
        waiting.insert(token.clone(), (now, request));
        Ok(token)
    }

    /// Hands the request out, the first time and in time.
    pub fn take(&self, token: &str, now: Instant) -> Option<T> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let (since, request) = waiting.remove(token)?;
        self.alive(since, now).then_some(request)
    }

    fn alive(&self, since: Instant, now: Instant) -> bool {
        now.saturating_duration_since(since) < self.lifetime
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn a_token_is_good_once() {
        let (tokens, now) = (Tokens::new(MINUTE), Instant::now());
        let token = tokens.keep("exec", now).unwrap();
        assert_eq!((tokens.take("", now), tokens.take(&token[1..], now)), (None, None));
        assert_eq!(tokens.take(&token, now), Some("exec"));
        assert_eq!(tokens.take(&token, now), None);
    }

    #[test]
    fn a_token_ends() {
        let (tokens, now) = (Tokens::new(MINUTE), Instant::now());
        let (early, late) = (tokens.keep(1, now).unwrap(), tokens.keep(2, now).unwrap());
        assert_eq!(tokens.take(&early, now + MINUTE - Duration::from_millis(1)), Some(1));
        assert_eq!(tokens.take(&late, now + MINUTE), None);
    }

    #[test]
    fn tokens_are_long_and_differ() {
        let (tokens, now) = (Tokens::new(MINUTE), Instant::now());
        let names: std::collections::HashSet<String> = (0..500).map(|n| tokens.keep(n, now).unwrap()).collect();
        assert!(names.len() == 500 && names.iter().all(|name| name.len() == 32));
    }

    #[test]
    fn their_number_is_bounded_and_old_ones_make_room() {
        let (tokens, now) = (Tokens::new(MINUTE), Instant::now());
        for n in 0..MOST {
            tokens.keep(n, now).unwrap();
        }
        assert!(matches!(tokens.keep(0, now), Err(Error::Unavailable(_))));
        tokens.keep(0, now + MINUTE).unwrap();
    }
}
