//! The standard streams of a container's first process.

use futures_util::FutureExt;

use super::remote::{self, Transport, Wanted};
use super::wire::Wire;
use super::{AttachRequest, Backend};

/// Ties a client to a container until one of them ends.
pub async fn serve(backend: &dyn Backend, request: AttachRequest, wire: Wire, transport: Transport) {
    let AttachRequest { tty, stdin, stdout, stderr, .. } = request;
    let wanted = Wanted { stdin, stdout, stderr, tty };
    remote::serve(wire, transport, wanted, |io| backend.attach(request, io).map(|end| end.map(|()| 0)).boxed()).await;
}
