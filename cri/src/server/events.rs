//! GetContainerEvents.

use std::sync::Arc;

use futures_util::Stream;
use k8s_cri::v1::{ContainerEventResponse, ContainerEventType};
use tonic::Status;

use super::convert;
use crate::daemon::Daemon;
use crate::events::{Event, Kind};

/// All events from now on.
pub fn stream(daemon: &Arc<Daemon>) -> impl Stream<Item = Result<ContainerEventResponse, Status>> + Send + use<> {
    futures_util::stream::unfold(daemon.events.listen(), |mut listener| async {
        let event = listener.next().await;
        Some((Ok(response(&event)), listener))
    })
}

/// With the state of now, which is that of the event or a later one.
fn response(event: &Event) -> ContainerEventResponse {
    let kind = match event.kind {
        Kind::Created => ContainerEventType::ContainerCreatedEvent,
        Kind::Started => ContainerEventType::ContainerStartedEvent,
        Kind::Stopped => ContainerEventType::ContainerStoppedEvent,
        Kind::Deleted => ContainerEventType::ContainerDeletedEvent,
    };
    ContainerEventResponse {
        container_id: event.container.clone(),
        container_event_type: kind as i32,
        created_at: event.at,
        pod_sandbox_status: event.pod.as_ref().map(|pod| convert::pod_status(pod)),
        containers_statuses: event.containers.iter().map(|container| convert::container_status(container)).collect(),
    }
}
