//! RuntimeService.

use std::collections::HashMap;
use std::pin::Pin;
use std::time::Duration;

use futures_util::Stream;
use k8s_cri::v1::runtime_service_server::RuntimeService;
use k8s_cri::v1::*;
use tonic::{Request, Response, Status};

use super::{Service, convert, events, pod_metrics, stats};
use crate::container::stats::Depth;
use crate::daemon::Daemon;
use crate::error::Error;
use crate::{container, sandbox};

type Answer<T> = std::result::Result<Response<T>, Status>;

/// Of the kubelet's API for runtimes; a word of the protocol, not of this program.
const KUBE_API_VERSION: &str = "0.1.0";

fn seconds(timeout: i64) -> Duration {
    Duration::from_secs(u64::try_from(timeout).unwrap_or(0))
}

fn config<T>(config: Option<T>) -> Result<T, Error> {
    config.ok_or_else(|| Error::invalid("config is missing"))
}

fn pod_filter(filter: Option<PodSandboxFilter>) -> sandbox::Filter {
    let filter = filter.unwrap_or_default();
    sandbox::Filter {
        id: filter.id,
        ready: filter.state.map(|state| state.state == PodSandboxState::SandboxReady as i32),
        labels: filter.label_selector,
    }
}

fn container_filter(filter: Option<ContainerFilter>) -> container::Filter {
    use container::Phase;
    let filter = filter.unwrap_or_default();
    let phases = filter.state.map(|state| match ContainerState::try_from(state.state) {
        Ok(ContainerState::ContainerCreated) => vec![Phase::Created],
        Ok(ContainerState::ContainerRunning) => vec![Phase::Running],
        Ok(ContainerState::ContainerExited) => vec![Phase::Exited],
        _ => vec![Phase::Lost],
    });
    container::Filter { id: filter.id, pod: filter.pod_sandbox_id, phases, labels: filter.label_selector }
}

fn stats_filter(filter: Option<ContainerStatsFilter>) -> container::Filter {
    let filter = filter.unwrap_or_default();
    container::Filter {
        id: filter.id,
        pod: filter.pod_sandbox_id,
        phases: Some(container::stats::PHASES.into()),
        labels: filter.label_selector,
    }
}

#[tonic::async_trait]
impl RuntimeService for Service {
    async fn version(&self, _: Request<VersionRequest>) -> Answer<VersionResponse> {
        Ok(Response::new(VersionResponse {
            version: KUBE_API_VERSION.to_owned(),
            runtime_name: "conward".to_owned(),
            runtime_version: env!("CARGO_PKG_VERSION").to_owned(),
            runtime_api_version: "v1".to_owned(),
        }))
    }

    async fn run_pod_sandbox(&self, request: Request<RunPodSandboxRequest>) -> Answer<RunPodSandboxResponse> {
        let request = request.into_inner();
        let pod_sandbox_id = sandbox::run(&self.0, config(request.config)?, request.runtime_handler).await?;
        Ok(Response::new(RunPodSandboxResponse { pod_sandbox_id }))
    }

    async fn stop_pod_sandbox(&self, request: Request<StopPodSandboxRequest>) -> Answer<StopPodSandboxResponse> {
        sandbox::stop(&self.0, &request.into_inner().pod_sandbox_id).await?;
        Ok(Response::new(StopPodSandboxResponse {}))
    }

    async fn remove_pod_sandbox(&self, request: Request<RemovePodSandboxRequest>) -> Answer<RemovePodSandboxResponse> {
        sandbox::remove(&self.0, &request.into_inner().pod_sandbox_id).await?;
        Ok(Response::new(RemovePodSandboxResponse {}))
    }

    async fn pod_sandbox_status(&self, request: Request<PodSandboxStatusRequest>) -> Answer<PodSandboxStatusResponse> {
        let request = request.into_inner();
        let pod = sandbox::status(&self.0, &request.pod_sandbox_id)?;
        let containers = self.0.containers_of(pod.id());
        Ok(Response::new(PodSandboxStatusResponse {
            status: Some(convert::pod_status(&pod)),
            info: if request.verbose { convert::pod_info(&pod) } else { HashMap::new() },
            containers_statuses: containers.iter().map(|container| convert::container_status(container)).collect(),
            timestamp: crate::state::now(),
        }))
    }

    async fn list_pod_sandbox(&self, request: Request<ListPodSandboxRequest>) -> Answer<ListPodSandboxResponse> {
        let pods = sandbox::list(&self.0, &pod_filter(request.into_inner().filter));
        Ok(Response::new(ListPodSandboxResponse { items: pods.iter().map(|pod| convert::pod(pod)).collect() }))
    }

    async fn create_container(&self, request: Request<CreateContainerRequest>) -> Answer<CreateContainerResponse> {
        let request = request.into_inner();
        let container_id = container::create(&self.0, &request.pod_sandbox_id, config(request.config)?).await?;
        Ok(Response::new(CreateContainerResponse { container_id }))
    }

    async fn start_container(&self, request: Request<StartContainerRequest>) -> Answer<StartContainerResponse> {
        container::start(&self.0, &request.into_inner().container_id).await?;
        Ok(Response::new(StartContainerResponse {}))
    }

    async fn stop_container(&self, request: Request<StopContainerRequest>) -> Answer<StopContainerResponse> {
        let request = request.into_inner();
        container::stop(&self.0, &request.container_id, seconds(request.timeout)).await?;
        Ok(Response::new(StopContainerResponse {}))
    }

    async fn remove_container(&self, request: Request<RemoveContainerRequest>) -> Answer<RemoveContainerResponse> {
        container::remove(&self.0, &request.into_inner().container_id).await?;
        Ok(Response::new(RemoveContainerResponse {}))
    }

    async fn list_containers(&self, request: Request<ListContainersRequest>) -> Answer<ListContainersResponse> {
        let found = container::list(&self.0, &container_filter(request.into_inner().filter));
        let containers = found.iter().map(|container| convert::container(container)).collect();
        Ok(Response::new(ListContainersResponse { containers }))
    }

    async fn container_status(&self, request: Request<ContainerStatusRequest>) -> Answer<ContainerStatusResponse> {
        let request = request.into_inner();
        let container = container::status(&self.0, &request.container_id)?;
        Ok(Response::new(ContainerStatusResponse {
            status: Some(convert::container_status(&container)),
            info: if request.verbose { convert::container_info(&container) } else { HashMap::new() },
        }))
    }

    async fn update_container_resources(
        &self,
        request: Request<UpdateContainerResourcesRequest>,
    ) -> Answer<UpdateContainerResourcesResponse> {
        let request = request.into_inner();
        let resources = request.linux.ok_or_else(|| Error::invalid("linux resources are missing"))?;
        container::update(&self.0, &request.container_id, resources).await?;
        Ok(Response::new(UpdateContainerResourcesResponse {}))
    }

    async fn reopen_container_log(
        &self,
        request: Request<ReopenContainerLogRequest>,
    ) -> Answer<ReopenContainerLogResponse> {
        container::reopen_log(&self.0, &request.into_inner().container_id).await?;
        Ok(Response::new(ReopenContainerLogResponse {}))
    }

    async fn exec_sync(&self, request: Request<ExecSyncRequest>) -> Answer<ExecSyncResponse> {
        let request = request.into_inner();
        let timeout = seconds(request.timeout);
        let output = container::exec_sync(&self.0, &request.container_id, request.cmd, timeout).await?;
        let (stdout, stderr, exit_code) = (output.stdout, output.stderr, output.code);
        Ok(Response::new(ExecSyncResponse { stdout, stderr, exit_code }))
    }

    async fn exec(&self, request: Request<ExecRequest>) -> Answer<ExecResponse> {
        let request = request.into_inner();
        let container = self.0.container(&request.container_id)?;
        container.running()?;
        let url = self.0.streaming()?.exec(crate::streaming::ExecRequest {
            container: container.id().to_owned(),
            command: request.cmd,
            tty: request.tty,
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
        })?;
        Ok(Response::new(ExecResponse { url }))
    }

    async fn attach(&self, request: Request<AttachRequest>) -> Answer<AttachResponse> {
        let request = request.into_inner();
        let container = self.0.container(&request.container_id)?;
        container.running()?;
        let url = self.0.streaming()?.attach(crate::streaming::AttachRequest {
            container: container.id().to_owned(),
            tty: request.tty,
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
        })?;
        Ok(Response::new(AttachResponse { url }))
    }

    async fn port_forward(&self, request: Request<PortForwardRequest>) -> Answer<PortForwardResponse> {
        let request = request.into_inner();
        let pod = self.0.pod(&request.pod_sandbox_id)?;
        sandbox::netns(&pod)?;
        let ports: Result<Vec<u16>, _> = request.port.iter().map(|port| u16::try_from(*port)).collect();
        let ports = ports.map_err(|_| Error::invalid(format!("Bad ports {:?}", request.port)))?;
        let url = self
            .0
            .streaming()?
            .port_forward(crate::streaming::PortForwardRequest { pod: pod.id().to_owned(), ports })?;
        Ok(Response::new(PortForwardResponse { url }))
    }

    async fn container_stats(&self, request: Request<ContainerStatsRequest>) -> Answer<ContainerStatsResponse> {
        let container = self.0.container(&request.into_inner().container_id)?;
        let own = container::stats::of(&self.0, &container).await?;
        let own = stats::container_stats(&container, &own, &self.0.images.usage().path);
        Ok(Response::new(ContainerStatsResponse { stats: Some(own) }))
    }

    async fn list_container_stats(
        &self,
        request: Request<ListContainerStatsRequest>,
    ) -> Answer<ListContainerStatsResponse> {
        let found = container::list(&self.0, &stats_filter(request.into_inner().filter));
        let all = container::stats::of_all(&self.0, found, Depth::Stats).await?;
        let files = self.0.images.usage().path;
        let stats = all.iter().map(|(container, own)| stats::container_stats(container, own, &files)).collect();
        Ok(Response::new(ListContainerStatsResponse { stats }))
    }

    async fn pod_sandbox_stats(&self, request: Request<PodSandboxStatsRequest>) -> Answer<PodSandboxStatsResponse> {
        let pod = self.0.pod(&request.into_inner().pod_sandbox_id)?;
        let own = sandbox::stats::of(&self.0, &pod).await?;
        let own = stats::pod_stats(&pod, &own, &self.0.images.usage().path);
        Ok(Response::new(PodSandboxStatsResponse { stats: Some(own) }))
    }

    async fn list_pod_sandbox_stats(
        &self,
        request: Request<ListPodSandboxStatsRequest>,
    ) -> Answer<ListPodSandboxStatsResponse> {
        let filter = request.into_inner().filter.unwrap_or_default();
        let filter = sandbox::Filter { id: filter.id, ready: Some(true), labels: filter.label_selector };
        let all = sandbox::stats::of_all(&self.0, sandbox::list(&self.0, &filter), Depth::Stats).await?;
        let files = self.0.images.usage().path;
        let stats = all.iter().map(|(pod, own)| stats::pod_stats(pod, own, &files)).collect();
        Ok(Response::new(ListPodSandboxStatsResponse { stats }))
    }

    async fn update_runtime_config(
        &self,
        request: Request<UpdateRuntimeConfigRequest>,
    ) -> Answer<UpdateRuntimeConfigResponse> {
        let network = request.into_inner().runtime_config.and_then(|config| config.network_config);
        if let Some(network) = network.filter(|network| !network.pod_cidr.is_empty()) {
            self.0.network.set_pod_cidr(&network.pod_cidr)?;
        }
        Ok(Response::new(UpdateRuntimeConfigResponse {}))
    }

    async fn status(&self, request: Request<StatusRequest>) -> Answer<StatusResponse> {
        let network = self.0.network.ready();
        let condition = |name: &str, failure: Option<(&str, String)>| {
            let (reason, message) = failure.clone().unwrap_or_default();
            RuntimeCondition { r#type: name.to_owned(), status: failure.is_none(), reason: reason.to_owned(), message }
        };
        let not_ready = network.err().map(|error| ("NetworkPluginNotReady", error.to_string()));
        let conditions = vec![condition("RuntimeReady", None), condition("NetworkReady", not_ready)];
        let info = if request.into_inner().verbose { runtime_info(&self.0) } else { HashMap::new() };
        Ok(Response::new(StatusResponse {
            status: Some(RuntimeStatus { conditions }),
            info,
            runtime_handlers: handlers(&self.0),
            features: Some(RuntimeFeatures { supplemental_groups_policy: true }),
        }))
    }

    async fn checkpoint_container(
        &self,
        _: Request<CheckpointContainerRequest>,
    ) -> Answer<CheckpointContainerResponse> {
        Err(Error::Unsupported("Checkpoints are not implemented by conward".to_owned()).into())
    }

    type GetContainerEventsStream =
        Pin<Box<dyn Stream<Item = std::result::Result<ContainerEventResponse, Status>> + Send>>;

    async fn get_container_events(&self, _: Request<GetEventsRequest>) -> Answer<Self::GetContainerEventsStream> {
        Ok(Response::new(Box::pin(events::stream(&self.0))))
    }

    async fn list_metric_descriptors(
        &self,
        _: Request<ListMetricDescriptorsRequest>,
    ) -> Answer<ListMetricDescriptorsResponse> {
        Ok(Response::new(ListMetricDescriptorsResponse { descriptors: pod_metrics::descriptors() }))
    }

    async fn list_pod_sandbox_metrics(
        &self,
        _: Request<ListPodSandboxMetricsRequest>,
    ) -> Answer<ListPodSandboxMetricsResponse> {
        let ready = sandbox::Filter { ready: Some(true), ..sandbox::Filter::default() };
        let all = sandbox::stats::of_all(&self.0, sandbox::list(&self.0, &ready), Depth::Metrics).await?;
        let of_all = move |daemon: &Daemon| {
            let disk = pod_metrics::Disk::of(&daemon.images.usage().path);
            Ok(pod_metrics::all(&all, &disk, daemon.systemd))
        };
        let pod_metrics = self.0.blocking(of_all).await?;
        Ok(Response::new(ListPodSandboxMetricsResponse { pod_metrics }))
    }

    async fn runtime_config(&self, _: Request<RuntimeConfigRequest>) -> Answer<RuntimeConfigResponse> {
        let driver = if self.0.systemd { CgroupDriver::Systemd } else { CgroupDriver::Cgroupfs };
        Ok(Response::new(RuntimeConfigResponse {
            linux: Some(LinuxRuntimeConfiguration { cgroup_driver: driver as i32 }),
        }))
    }
}

/// The default handler is listed by the empty name as well.
fn handlers(daemon: &Daemon) -> Vec<RuntimeHandler> {
    let named = daemon.handlers.0.iter().map(|handler| (handler.name.clone(), handler));
    let default = daemon.handlers.0.first().map(|handler| (String::new(), handler));
    default
        .into_iter()
        .chain(named)
        .map(|(name, handler)| RuntimeHandler {
            name,
            features: Some(RuntimeHandlerFeatures {
                recursive_read_only_mounts: handler.recursive_read_only,
                user_namespaces: daemon.user_namespaces,
            }),
        })
        .collect()
}

fn runtime_info(daemon: &Daemon) -> HashMap<String, String> {
    let info = serde_json::json!({
        "config": daemon.config,
        "monitor": daemon.monitor,
        "runtimes": daemon.handlers.0.iter().map(|handler| (&handler.name, &handler.path)).collect::<HashMap<_, _>>(),
        "network": daemon.network.info(),
    });
    HashMap::from([("config".to_owned(), info.to_string())])
}
