//! A command in a running container.

use super::remote::{self, Transport, Wanted};
use super::wire::Wire;
use super::{Backend, ExecRequest};

/// Runs a command for a client until both have ended.
pub async fn serve(backend: &dyn Backend, request: ExecRequest, wire: Wire, transport: Transport) {
    let ExecRequest { tty, stdin, stdout, stderr, .. } = request;
    let wanted = Wanted { stdin, stdout, stderr, tty };
    remote::serve(wire, transport, wanted, |io| backend.exec(request, io)).await;
}
