//! `conward-cri check`: a pod through the server's own socket, as a kubelet would have it, to see that this host works.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::*;
use tonic::transport::{Channel, Endpoint};

use crate::error::{Context, Error, Result, with_causes};

/// How long the server may take to be there, and a container to say something.
const PATIENCE: Duration = Duration::from_secs(20);

/// What the container says, and what it is asked.
const SCRIPT: &str = "echo hello from $(hostname), process $$; echo this went to stderr >&2; exec sleep 1000";
const QUESTION: [&str; 3] =
    ["/bin/sh", "-c", "read first < /proc/1/comm; echo $(id -un) on $(hostname), where process 1 is $first"];

/// What to run.
#[derive(Debug, clap::Args)]
pub struct Wanted {
    /// An image with a shell; pulled if it is not there
    #[arg(long, default_value = crate::image::BUSYBOX)]
    image: String,
    /// Without a network of its own, so without CNI plugins
    #[arg(long)]
    host_network: bool,
    /// The cgroup of the pod, as a kubelet names it: a path, or that of a slice
    #[arg(long, value_name = "PATH", default_value = "")]
    cgroup_parent: String,
    /// Leave the pod, whose id is the last line
    #[arg(long)]
    pub keep: bool,
}

/// Runs a pod with a container and tells what it sees; the pod's id. It is removed again unless it is kept.
pub async fn check(socket: &Path, wanted: &Wanted) -> Result<String> {
    let mut client = Client::connect(socket).await?;
    client.introduce().await?;
    client.image(&wanted.image).await?;
    let config = client.config(wanted);
    let pod = match client.pod(&config).await {
        Ok(pod) => pod,
        Err(error) => {
            // Nothing is in there without a pod.
            let _ = std::fs::remove_dir(&config.log_directory);
            return Err(error);
        }
    };
    let seen = client.container(&pod, &config, &wanted.image).await;
    if wanted.keep && seen.is_ok() {
        return Ok(pod);
    }
    client.remove(&pod).await?;
    seen.map(|()| pod)
}

/// Removes a pod that was kept.
pub async fn remove(socket: &Path, pod: &str) -> Result<()> {
    Client::connect(socket).await?.remove(pod).await
}

/// Whether a server answers: asks for its pods and containers, as a kubelet does all the time.
pub async fn answers(socket: &Path) -> Result<()> {
    let mut runtime = Client::connect(socket).await?.runtime;
    runtime.list_pod_sandbox(ListPodSandboxRequest::default()).await.map_err(said("ListPodSandbox"))?;
    runtime.list_containers(ListContainersRequest::default()).await.map(drop).map_err(said("ListContainers"))
}

/// Marks the pods that were made here.
const LABEL: &str = "conward.check";

struct Client {
    /// Where logs are: beside the socket, where nobody but the server's user writes.
    logs: PathBuf,
    runtime: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
}

/// A call's own text is what the server said.
fn said(call: &'static str) -> impl Fn(tonic::Status) -> Error {
    move |status| Error::failed(format!("{call}: {:?}: {}", status.code(), status.message()))
}

fn show(text: &str) {
    use std::io::Write;
    // A reader that went away is no reason to leave a pod behind.
    let _ = writeln!(std::io::stdout(), "{text}");
}

impl Client {
    async fn connect(socket: &Path) -> Result<Client> {
        let doing = || format!("Failed to connect to {}", socket.display());
        let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display())).context(doing)?;
        let until = Instant::now() + PATIENCE;
        let channel = loop {
            match endpoint.connect().await {
                Ok(channel) => break channel,
                Err(error) if Instant::now() > until => {
                    return Err(Error::failed(format!("{}: {}; does a server run?", doing(), with_causes(&error))));
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        };
        Ok(Client {
            logs: socket.parent().unwrap_or(Path::new("/")).to_owned(),
            runtime: RuntimeServiceClient::new(channel.clone()),
            images: ImageServiceClient::new(channel),
        })
    }

    async fn introduce(&mut self) -> Result<()> {
        let version = self.runtime.version(VersionRequest::default()).await.map_err(said("Version"))?.into_inner();
        let status = self.runtime.status(StatusRequest::default()).await.map_err(said("Status"))?.into_inner();
        let mut text =
            format!("{} {}, CRI {}", version.runtime_name, version.runtime_version, version.runtime_api_version);
        for condition in status.status.unwrap_or_default().conditions {
            let _ = write!(text, ", {}={}", condition.r#type, condition.status);
        }
        show(&text);
        Ok(())
    }

    async fn image(&mut self, image: &str) -> Result<()> {
        let spec = || Some(ImageSpec { image: image.to_owned(), ..ImageSpec::default() });
        let request = ImageStatusRequest { image: spec(), verbose: false };
        let found = self.images.image_status(request).await.map_err(said("ImageStatus"))?.into_inner().image;
        if found.is_none() {
            let request = PullImageRequest { image: spec(), ..PullImageRequest::default() };
            self.images.pull_image(request).await.map_err(said("PullImage"))?;
        }
        Ok(())
    }

    fn logs(&self, uid: &str) -> PathBuf {
        self.logs.join(format!("check-{uid}"))
    }

    fn config(&self, wanted: &Wanted) -> PodSandboxConfig {
        let uid = std::process::id().to_string();
        let logs = self.logs(&uid);
        let network = if wanted.host_network { NamespaceMode::Node } else { NamespaceMode::Pod };
        let options = NamespaceOption {
            network: network as i32,
            pid: NamespaceMode::Container as i32,
            ..NamespaceOption::default()
        };
        let context =
            LinuxSandboxSecurityContext { namespace_options: Some(options), ..LinuxSandboxSecurityContext::default() };
        PodSandboxConfig {
            metadata: Some(PodSandboxMetadata { name: "check".into(), uid, namespace: "conward".into(), attempt: 0 }),
            hostname: if wanted.host_network { String::new() } else { "check".into() },
            log_directory: logs.to_string_lossy().into(),
            linux: Some(LinuxPodSandboxConfig {
                security_context: Some(context),
                cgroup_parent: wanted.cgroup_parent.clone(),
                ..LinuxPodSandboxConfig::default()
            }),
            labels: HashMap::from([(LABEL.to_owned(), "true".to_owned())]),
            ..PodSandboxConfig::default()
        }
    }

    async fn pod(&mut self, config: &PodSandboxConfig) -> Result<String> {
        let begun = Instant::now();
        std::fs::create_dir_all(&config.log_directory)
            .context(|| format!("Failed to make {}", config.log_directory))?;
        let request = RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: String::new() };
        let id =
            self.runtime.run_pod_sandbox(request).await.map_err(said("RunPodSandbox"))?.into_inner().pod_sandbox_id;
        let request = PodSandboxStatusRequest { pod_sandbox_id: id.clone(), verbose: false };
        let status = self.runtime.pod_sandbox_status(request).await.map_err(said("PodSandboxStatus"))?.into_inner();
        let address = status.status.unwrap_or_default().network.unwrap_or_default().ip;
        let place = if address.is_empty() { "on the host's network".to_owned() } else { format!("at {address}") };
        show(&format!("pod {id} {place}, after {} ms", begun.elapsed().as_millis()));
        Ok(id)
    }

    async fn container(&mut self, pod: &str, within: &PodSandboxConfig, image: &str) -> Result<()> {
        let begun = Instant::now();
        let context = within.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
        let namespaces = context.and_then(|context| context.namespace_options.clone());
        let config = ContainerConfig {
            metadata: Some(ContainerMetadata { name: "check".into(), attempt: 0 }),
            image: Some(ImageSpec { image: image.to_owned(), ..ImageSpec::default() }),
            command: ["/bin/sh", "-c", SCRIPT].map(str::to_owned).into(),
            log_path: "check.log".into(),
            linux: Some(LinuxContainerConfig {
                security_context: Some(LinuxContainerSecurityContext {
                    namespace_options: namespaces,
                    seccomp: Some(SecurityProfile::default()),
                    no_new_privs: true,
                    ..LinuxContainerSecurityContext::default()
                }),
                ..LinuxContainerConfig::default()
            }),
            ..ContainerConfig::default()
        };
        let request = CreateContainerRequest {
            pod_sandbox_id: pod.to_owned(),
            config: Some(config),
            sandbox_config: Some(within.clone()),
        };
        let created = self.runtime.create_container(request).await.map_err(said("CreateContainer"))?.into_inner();
        let id = created.container_id;
        let request = StartContainerRequest { container_id: id.clone() };
        self.runtime.start_container(request).await.map_err(said("StartContainer"))?;
        show(&format!("container {id} runs, after {} ms", begun.elapsed().as_millis()));
        self.log(&id).await?;
        self.ask(&id).await
    }

    /// The CRI has no call for a log's text: the status says where it is.
    async fn log(&mut self, id: &str) -> Result<()> {
        let request = ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        let status = self.runtime.container_status(request).await.map_err(said("ContainerStatus"))?.into_inner();
        let path = status.status.unwrap_or_default().log_path;
        let until = Instant::now() + PATIENCE;
        loop {
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            if text.lines().count() >= 2 {
                show(&format!("its log, {path}:\n{}", text.trim_end()));
                return Ok(());
            }
            if Instant::now() > until {
                return Err(Error::failed(format!("The log {path} has {text:?} after {} s", PATIENCE.as_secs())));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn ask(&mut self, id: &str) -> Result<()> {
        let request =
            ExecSyncRequest { container_id: id.to_owned(), cmd: QUESTION.map(str::to_owned).into(), timeout: 10 };
        let answer = self.runtime.exec_sync(request).await.map_err(said("ExecSync"))?.into_inner();
        let (out, err) = (String::from_utf8_lossy(&answer.stdout), String::from_utf8_lossy(&answer.stderr));
        show(&format!("asked inside (exit {}): {}{}", answer.exit_code, out.trim_end(), err.trim_end()));
        if answer.exit_code == 0 { Ok(()) } else { Err(Error::failed("The exec in the container failed")) }
    }

    async fn remove(&mut self, pod: &str) -> Result<()> {
        let begun = Instant::now();
        let logs = self.logs_of(pod).await?;
        let request = StopPodSandboxRequest { pod_sandbox_id: pod.to_owned() };
        self.runtime.stop_pod_sandbox(request).await.map_err(said("StopPodSandbox"))?;
        let request = RemovePodSandboxRequest { pod_sandbox_id: pod.to_owned() };
        self.runtime.remove_pod_sandbox(request).await.map_err(said("RemovePodSandbox"))?;
        show(&format!("pod {pod} is removed, after {} ms", begun.elapsed().as_millis()));
        match std::fs::remove_dir_all(&logs) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::failed(format!("Failed to remove the logs in {}: {error}", logs.display())))
            }
            _ => Ok(()),
        }
    }

    /// Where a pod of this command has its logs. The pods of others are theirs to remove.
    async fn logs_of(&mut self, pod: &str) -> Result<PathBuf> {
        let request = PodSandboxStatusRequest { pod_sandbox_id: pod.to_owned(), verbose: false };
        let status = self.runtime.pod_sandbox_status(request).await.map_err(said("PodSandboxStatus"))?.into_inner();
        let status = status.status.unwrap_or_default();
        let uid = status.metadata.unwrap_or_default().uid;
        if !status.labels.contains_key(LABEL) || !uid.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(Error::invalid(format!("Pod {pod} was not made by check: it is left alone")));
        }
        Ok(self.logs(&uid))
    }
}
