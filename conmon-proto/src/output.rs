//! Output on its way from the monitor to the one who asked for it.
//!
//! The monitor calls [`Output`], the caller takes from [`Events`]. Each call is answered when its event has been taken,
//! so that a slow taker slows the monitor's stream and nothing piles up here.

use std::cell::Cell;
use std::rc::Rc;

use capnp::capability::Promise;
use futures::StreamExt;
use futures::channel::{mpsc, oneshot};

use crate::conward_capnp::output;
use crate::types::{End, Stream};

/// Something that happened to the output of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// `offset` counts the bytes of this stream since the start.
    Write { stream: Stream, offset: u64, data: Vec<u8> },
    /// These bytes cannot be had any more.
    Gap { stream: Stream, offset: u64, lost: u64 },
    /// The last event.
    End(End),
}

/// Makes both ends of a way for output.
pub fn output() -> (Output, Events) {
    let (sender, receiver) = mpsc::unbounded();
    let waiting = Rc::new(Cell::new(0));
    let server = Server { sender, waiting: Rc::clone(&waiting) };
    (Output(capnp_rpc::new_client(server)), Events { receiver, waiting })
}

/// The end that is given to the monitor.
#[derive(Clone)]
pub struct Output(pub(crate) output::Client);

impl std::fmt::Debug for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Output")
    }
}

/// The end where events come out.
#[derive(Debug)]
pub struct Events {
    receiver: mpsc::UnboundedReceiver<Given>,
    waiting: Rc<Cell<usize>>,
}

impl Events {
    /// The next event; none when the connection has gone, or after the end.
    pub async fn next(&mut self) -> Option<Event> {
        let given = self.receiver.next().await?;
        self.waiting.set(self.waiting.get().saturating_sub(given.weight));
        // Whoever called may have gone meanwhile.
        let _ = given.taken.send(());
        Some(given.event)
    }

    /// About how many bytes have come and were not taken yet.
    pub fn waiting(&self) -> usize {
        self.waiting.get()
    }
}

#[derive(Debug)]
struct Given {
    event: Event,
    weight: usize,
    taken: oneshot::Sender<()>,
}

struct Server {
    sender: mpsc::UnboundedSender<Given>,
    waiting: Rc<Cell<usize>>,
}

/// What may wait here in all. A monitor that minds the flow control stays far below; any other gets an error.
const WAITING_MAX: usize = 16 << 20;

/// What an event costs beside its data.
const EVENT_WEIGHT: usize = 256;

impl Server {
    /// Takes the event at once, so that the order is that of the calls; the answer comes when it has been taken.
    fn give(&self, event: Event) -> Promise<(), capnp::Error> {
        let data = if let Event::Write { data, .. } = &event { data.len() } else { 0 };
        let weight = data + EVENT_WEIGHT;
        if self.waiting.get() + weight > WAITING_MAX {
            return Promise::err(capnp::Error::overloaded("more output than was asked for".to_owned()));
        }
        let (taken, answer) = oneshot::channel();
        if self.sender.unbounded_send(Given { event, weight, taken }).is_err() {
            return Promise::err(gone());
        }
        self.waiting.set(self.waiting.get() + weight);
        Promise::from_future(async { answer.await.map_err(|_| gone()) })
    }
}

fn gone() -> capnp::Error {
    capnp::Error::disconnected("nobody takes this output any more".to_owned())
}

fn written(params: &output::WriteParams) -> capnp::Result<Event> {
    let params = params.get()?;
    let (stream, offset) = (params.get_stream().into(), params.get_offset());
    Ok(Event::Write { stream, offset, data: params.get_data()?.to_vec() })
}

fn missing(params: &output::GapParams) -> capnp::Result<Event> {
    let params = params.get()?;
    Ok(Event::Gap { stream: params.get_stream().into(), offset: params.get_offset(), lost: params.get_lost() })
}

fn ended(params: &output::EndParams) -> capnp::Result<Event> {
    Ok(Event::End(End::read(params.get()?.get_end()?)?))
}

// Not `async`: the event must be queued when the call comes in, and not when its future is first polled.
#[allow(refining_impl_trait)]
impl output::Server for Server {
    fn write(self: Rc<Self>, params: output::WriteParams) -> Promise<(), capnp::Error> {
        written(&params).map_or_else(Promise::err, |event| self.give(event))
    }

    fn gap(self: Rc<Self>, params: output::GapParams) -> Promise<(), capnp::Error> {
        missing(&params).map_or_else(Promise::err, |event| self.give(event))
    }

    fn end(self: Rc<Self>, params: output::EndParams, _: output::EndResults) -> Promise<(), capnp::Error> {
        ended(&params).map_or_else(Promise::err, |event| self.give(event))
    }
}
