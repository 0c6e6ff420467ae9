//! The attach socket and its clients in the state that an upgrade hands over: none of them notices.

use std::ffi::OsString;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Interest, Registry};

use super::{Attach, CLIENTS_MAX, Client, Feed, Line, spare_from};
use crate::log::file::saved::{restore_mark, restore_pair, save_mark, save_pair};
use crate::log::history::Place;
use crate::source::Source;
use crate::upgrade::state::{Given, StateError, Taken};
use crate::upgrade::state_capnp::{attach, client};

impl Attach {
    pub fn save(&self, mut to: attach::Builder<'_>, given: &mut Given) {
        to.set_listener(given.give_if(self.listener.as_ref()));
        to.set_link(self.link.as_deref().map_or(&[], |link| link.as_os_str().as_bytes()));
        to.set_next(self.next);
        // Clients of the service come again by themselves, and say where they were.
        let ours: Vec<&Client> = self.clients.iter().filter(|client| client.socket().is_some()).collect();
        let mut clients = to.init_clients(u32::try_from(ours.len()).unwrap_or(0));
        for (index, client) in (0..).zip(ours) {
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
            listener: taken.take_if(from.get_listener())?,
            socket: bundle.join("attach"),
            link: link.map(|link| PathBuf::from(OsString::from_vec(link.to_vec()))),
            clients: clients.iter().map(|client| Client::restore(client, taken)).collect::<Result<_, _>>()?,
            next: from.get_next(),
            spare_from: spare_from(),
            stuck: false,
        })
    }

    /// Registers all clients with a new loop, and lists them; whoever cannot be registered sees the end.
    pub fn watch_all(&mut self, registry: &Registry) -> Vec<u32> {
        for client in &mut self.clients {
            let is_behind = client.is_behind();
            let interest = if is_behind { Interest::READABLE | Interest::WRITABLE } else { Interest::READABLE };
            let token = Source::Client(client.id).token();
            let Some(number) = client.socket().map(|socket| socket.as_raw_fd()) else { continue };
            if let Err(error) = registry.register(&mut SourceFd(&number), token, interest) {
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
        if let Line::Packets(socket) = &self.line {
            to.set_fd(given.give(socket));
        }
        to.set_sending(self.sending);
        to.set_left(self.left);
        if let Some(since) = self.stalled {
            to.set_stalled(true);
            to.set_stalled_for(u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX));
        }
        let mut feed = to.init_feed();
        match &self.feed {
            Feed::Live => feed.set_live(()),
            // Only clients of the service look for something.
            Feed::Deaf | Feed::Looking(_) => feed.set_deaf(()),
            Feed::Behind(place) => {
                let mut behind = feed.init_behind();
                save_mark(place.mark, behind.reborrow().init_mark());
                save_pair(place.from, behind.init_from());
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
            client::feed::Behind(behind) => {
                let behind = behind?;
                let (mark, from) = (restore_mark(behind.get_mark()?)?, restore_pair(behind.get_from()?)?);
                Feed::Behind(Place { mark, from })
            }
            client::feed::Queued(queued) => {
                let queued = queued?;
                Feed::Queued([queued.get_stdout()?.to_vec(), queued.get_stderr()?.to_vec()])
            }
        };
        let since = || Instant::now().checked_sub(Duration::from_millis(from.get_stalled_for()));
        Ok(Client {
            id: from.get_id(),
            line: Line::Packets(socket),
            feed,
            // What was said before the exec may wait without a further event.
            readable: from.get_sending(),
            sending: from.get_sending(),
            left: from.get_left(),
            stalled: from.get_stalled().then(|| since().unwrap_or_else(Instant::now)),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use capnp::message::Builder;

    use super::*;
    use crate::log::file::{Mark, Position};

    fn client(id: u32, feed: Feed) -> Client {
        let socket: OwnedFd = std::fs::File::open("/dev/null").unwrap().into();
        let line = Line::Packets(socket);
        Client { id, line, feed, readable: false, sending: id.is_multiple_of(2), left: id > 2, stalled: None }
    }

    #[test]
    fn every_kind_of_client_is_handed_over() {
        let at = |generation, offset| Mark { at: Position { generation, offset }, offsets: [3, 4] };
        let clients = vec![
            client(0, Feed::Live),
            client(1, Feed::Behind(Place { mark: at(4, 5), from: [6, 7] })),
            client(2, Feed::Behind(Place::from(at(1, 0)))),
            client(3, Feed::Deaf),
            Client { stalled: Some(Instant::now()), ..client(9, Feed::Queued([b"out".to_vec(), b"err".to_vec()])) },
        ];
        let listener: Option<OwnedFd> = Some(std::fs::File::open("/dev/null").unwrap().into());
        let link = Some(PathBuf::from("/s/link"));
        let socket = "/b/attach".into();
        let before = Attach { listener, socket, link, clients, next: 10, spare_from: spare_from(), stuck: false };
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
