//! Names of pods and containers, each of which is made once however often a client asks.
//!
//! A client whose deadline has passed asks again with the same name: it joins the creation that is still going on, or
//! gets what that has made meanwhile.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use crate::error::{Error, Result};

#[derive(Debug, Default)]
pub struct Names(Mutex<HashMap<String, Entry>>);

/// Empty while the work goes on.
type Made = watch::Receiver<Option<Result<String>>>;

/// Where the result goes.
type Teller = watch::Sender<Option<Result<String>>>;

#[derive(Debug)]
struct Entry {
    made: Made,
    /// Somebody has got the id.
    told: bool,
}

impl Names {
    /// Makes what has this name, or waits for who is making it; answers with its id. The work goes on when the caller
    /// goes away.
    pub async fn make<W>(self: &Arc<Names>, name: String, work: W) -> Result<String>
    where
        W: Future<Output = Result<String>> + Send + 'static,
    {
        let (mut made, begun) = self.enter(&name)?;
        if let Some(sender) = begun {
            let (names, name) = (Arc::clone(self), name.clone());
            tokio::spawn(async move {
                let result = work.await;
                if result.is_err() {
                    names.release(&name);
                }
                let _ = sender.send(Some(result));
            });
        }
        let result = match made.wait_for(Option::is_some).await {
            Ok(result) => result.clone(),
            Err(_) => None,
        };
        let result = result.unwrap_or_else(|| Err(Error::failed(format!("Creation of {name} broke off"))));
        if result.is_ok() {
            self.with(|table| table.get_mut(&name).map(|entry| entry.told = true));
        }
        result
    }

    /// Takes note of what was there before this program; who asks for it was perhaps not told.
    pub fn restore(&self, name: String, id: String) {
        let (_, made) = watch::channel(Some(Ok(id)));
        self.with(|table| table.insert(name, Entry { made, told: false }));
    }

    /// Gives a name free.
    pub fn release(&self, name: &str) {
        self.with(|table| table.remove(name));
    }

    /// What is being made under this name, and, if nothing was before, the end to tell the result to.
    fn enter(&self, name: &str) -> Result<(Made, Option<Teller>)> {
        self.with(|table| match table.get(name) {
            None => {
                let (sender, made) = watch::channel(None);
                table.insert(name.to_owned(), Entry { made: made.clone(), told: false });
                Ok((made, Some(sender)))
            }
            Some(entry) if entry.told => {
                let made = entry.made.borrow();
                let id = made.as_ref().and_then(|made| made.as_ref().ok()).map_or("", String::as_str);
                Err(Error::Exists(format!("The name {name} is taken by {id}")))
            }
            Some(entry) => Ok((entry.made.clone(), None)),
        })
    }

    fn with<T>(&self, action: impl FnOnce(&mut HashMap<String, Entry>) -> T) -> T {
        action(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn a_retry_joins_and_gets_what_was_made() {
        let names = Arc::new(Names::default());
        let slow = async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            Ok("one".to_owned())
        };
        let first = names.make("n".into(), slow);
        assert!(tokio::time::timeout(Duration::from_millis(5), first).await.is_err());
        let again = names.make("n".into(), async { Ok("two".to_owned()) }).await;
        assert_eq!(again.as_deref(), Ok("one"));
        let third = names.make("n".into(), async { Ok("three".to_owned()) }).await;
        assert!(matches!(third, Err(Error::Exists(text)) if text.contains("one")));
    }

    #[tokio::test]
    async fn a_failure_frees_the_name() {
        let names = Arc::new(Names::default());
        assert!(names.make("n".into(), async { Err(Error::failed("no")) }).await.is_err());
        assert_eq!(names.make("n".into(), async { Ok("id".to_owned()) }).await.as_deref(), Ok("id"));
        names.release("n");
        assert_eq!(names.make("n".into(), async { Ok("id2".to_owned()) }).await.as_deref(), Ok("id2"));
    }
}
