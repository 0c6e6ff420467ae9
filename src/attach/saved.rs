//! The attach socket and its clients in the state that an upgrade hands over: none of them notices.

use std::ffi::OsString;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Interest, Registry};

use super::{Attach, CLIENTS_MAX, Client, Feed, spare_from};
use crate::log::file::Position;
use crate::log::history::Cursor;
use crate::source::Source;
use crate::upgrade::state::{Given, StateError, Taken, count};
use crate::upgrade::state_capnp::{attach, client, position};

impl Attach {
    pub fn save(&self, mut to: attach::Builder<'_>, given: &mut Given) {
        to.set_listener(given.give(&self.listener));
        to.set_link(self.link.as_deref().map_or(&[], |link| link.as_os_str().as_bytes()));
        to.set_next(self.next);
        let mut clients = to.init_clients(u32::try_from(self.clients.len()).unwrap_or(0));
        for (index, client) in (0..).zip(&self.clients) {
            client.save(clients.reborrow().get(index), given);
        }
    }

    pub fn restore(bundle: &Path, from: attach::Reader<'_>, taken: &mut Taken) -> Result<Attach, StateError> {
        let clients = from.get_clients()?;
        if clients.len() as usize > CLIENTS_MAX {
            return Err(StateError::Value("clients"));
        }
        let link = Some(from.get_link()?).filter(|link| !link.is_empty());
        Ok(Attach {
            listener: taken.take(from.get_listener())?,
            socket: bundle.join("attach"),
            link: link.map(|link| PathBuf::from(OsString::from_vec(link.to_vec()))),
            clients: clients.iter().map(|client| Client::restore(client, taken)).collect::<Result<_, _>>()?,
            next: from.get_next(),
            spare_from: spare_from(),
        })
    }

    /// Registers all clients with a new loop, and lists them; whoever cannot be registered sees the end.
    pub fn watch_all(&mut self, registry: &Registry) -> Vec<u32> {
        for client in &mut self.clients {
            let is_behind = matches!(client.feed, Feed::Behind { .. } | Feed::Queued(_));
            let interest = if is_behind { Interest::READABLE | Interest::WRITABLE } else { Interest::READABLE };
            let token = Source::Client(client.id).token();
            if let Err(error) = registry.register(&mut SourceFd(&client.socket.as_raw_fd()), token, interest) {
                crate::warn!("Failed to watch an attach client: {error}");
                client.deafen();
            }
        }
        self.clients.iter().map(|client| client.id).collect()
    }
}

impl Client {
    fn save(&self, mut to: client::Builder<'_>, given: &mut Given) {
        to.set_id(self.id);
        to.set_fd(given.give(&self.socket));
        to.set_sending(self.sending);
        to.set_left(self.left);
        if let Some(since) = self.stalled {
            to.set_stalled(true);
            to.set_stalled_for(u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX));
        }
        let mut feed = to.init_feed();
        match &self.feed {
            Feed::Live => feed.set_live(()),
            Feed::Deaf => feed.set_deaf(()),
            Feed::Behind { cursor, stop } => {
                let mut behind = feed.init_behind();
                behind.set_skip(cursor.skip as u64);
                save_position(cursor.at, behind.reborrow().init_at());
                if let Some(stop) = stop {
                    save_position(*stop, behind.init_stop());
                }
            }
            Feed::Queued([stdout, stderr]) => {
                let mut queued = feed.init_queued();
                queued.set_stdout(stdout);
                queued.set_stderr(stderr);
            }
        }
    }

    fn restore(from: client::Reader<'_>, taken: &mut Taken) -> Result<Client, StateError> {
        let socket = taken.take(from.get_fd())?;
        let feed = match from.get_feed().which()? {
            client::feed::Live(()) => Feed::Live,
            client::feed::Deaf(()) => Feed::Deaf,
            client::feed::Behind(behind) => behind_at(behind?)?,
            client::feed::Queued(queued) => {
                let queued = queued?;
                Feed::Queued([queued.get_stdout()?.to_vec(), queued.get_stderr()?.to_vec()])
            }
        };
        let since = || Instant::now().checked_sub(Duration::from_millis(from.get_stalled_for()));
        Ok(Client {
            id: from.get_id(),
            socket,
            feed,
            // What was said before the exec may wait without a further event.
            readable: from.get_sending(),
            sending: from.get_sending(),
            left: from.get_left(),
            stalled: from.get_stalled().then(|| since().unwrap_or_else(Instant::now)),
        })
    }
}

fn behind_at(from: client::behind::Reader<'_>) -> Result<Feed, StateError> {
    let skip = usize::try_from(count(from.get_skip(), "skip")?).map_err(|_| StateError::Value("skip"))?;
    let cursor = Cursor { at: restore_position(from.get_at()?)?, skip };
    let stop = from.has_stop().then(|| restore_position(from.get_stop()?)).transpose()?;
    Ok(Feed::Behind { cursor, stop })
}

fn save_position(at: Position, mut to: position::Builder<'_>) {
    to.set_generation(at.generation);
    to.set_offset(at.offset);
}

fn restore_position(from: position::Reader<'_>) -> Result<Position, StateError> {
    let generation = count(from.get_generation(), "generation")?;
    Ok(Position { generation, offset: count(from.get_offset(), "offset")? })
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use capnp::message::Builder;

    use super::*;

    fn client(id: u32, feed: Feed) -> Client {
        let socket: OwnedFd = std::fs::File::open("/dev/null").unwrap().into();
        Client { id, socket, feed, readable: false, sending: id.is_multiple_of(2), left: id > 2, stalled: None }
    }

    #[test]
    fn every_kind_of_client_is_handed_over() {
        let at = |generation, offset| Position { generation, offset };
        let clients = vec![
            client(0, Feed::Live),
            client(1, Feed::Behind { cursor: Cursor { at: at(4, 5), skip: 6 }, stop: Some(at(7, 8)) }),
            client(2, Feed::Behind { cursor: Cursor { at: at(1, 0), skip: 0 }, stop: None }),
            client(3, Feed::Deaf),
            Client { stalled: Some(Instant::now()), ..client(9, Feed::Queued([b"out".to_vec(), b"err".to_vec()])) },
        ];
        let listener: OwnedFd = std::fs::File::open("/dev/null").unwrap().into();
        let link = Some(PathBuf::from("/s/link"));
        let before = Attach { listener, socket: "/b/attach".into(), link, clients, next: 10, spare_from: spare_from() };
        let (mut message, mut given) = (Builder::new_default(), Given::default());
        before.save(message.init_root(), &mut given);
        assert_eq!(given.numbers().len(), 6);
        let root = message.get_root_as_reader().unwrap();
        let after = Attach::restore(Path::new("/b"), root, &mut Taken::stand_ins().unwrap()).unwrap();
        assert_eq!((after.next, &after.socket, &after.link), (10, &before.socket, &before.link));
        for (a, b) in before.clients.iter().zip(&after.clients) {
            assert_eq!((a.id, a.sending, a.left, b.readable), (b.id, b.sending, b.left, b.sending));
            assert_eq!(a.stalled.is_some(), b.stalled.is_some());
            assert_eq!(format!("{:?}", a.feed), format!("{:?}", b.feed));
        }
        assert_eq!(after.clients.len(), 5);
    }
}
