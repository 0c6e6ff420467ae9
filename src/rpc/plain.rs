//! Capabilities whose streaming calls do not hold up the others.
//!
//! capnp-rpc lets nothing past a streaming call that is not answered yet, and after one that failed it fails all others
//! too. Input is answered when a process has taken it, which may be never; signals, `wait` and the rest must get past
//! it, and tell how the process ended that takes no more. The order of what is typed is kept by the monitor's own queue.

use std::ops::Deref;
use std::rc::Rc;

use capnp::any_pointer;
use capnp::capability::{DispatchCallResult, FromClientHook, FromServer, Params, Results, Server};
use capnp::private::capability::ClientHook;

/// Makes a client of type `C` from its server.
pub fn client<C: FromServer<S>, S>(server: S) -> C {
    let Plain(client) = capnp_rpc::new_client(server);
    client
}

struct Plain<C>(C);

impl<C: FromClientHook> FromClientHook for Plain<C> {
    fn new(hook: Box<dyn ClientHook>) -> Self {
        Plain(C::new(hook))
    }

    fn into_client_hook(self) -> Box<dyn ClientHook> {
        self.0.into_client_hook()
    }

    fn as_client_hook(&self) -> &dyn ClientHook {
        self.0.as_client_hook()
    }
}

impl<S, C: FromServer<S>> FromServer<S> for Plain<C> {
    type Dispatch = Dispatch<C::Dispatch>;

    fn from_server(server: Rc<S>) -> Self::Dispatch {
        Dispatch(C::from_server(server))
    }
}

#[derive(Clone)]
struct Dispatch<D>(D);

impl<D: Deref> Deref for Dispatch<D> {
    type Target = D::Target;

    fn deref(&self) -> &D::Target {
        &self.0
    }
}

impl<D: Server> Server for Dispatch<D> {
    fn dispatch_call(
        self,
        interface: u64,
        method: u16,
        params: Params<any_pointer::Owned>,
        results: Results<any_pointer::Owned>,
    ) -> DispatchCallResult {
        let called = self.0.dispatch_call(interface, method, params, results);
        DispatchCallResult::new(called.promise, false)
    }

    fn as_ptr(&self) -> usize {
        self.0.as_ptr()
    }
}
