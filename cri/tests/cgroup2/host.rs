//! A server with directories of its own, and a client that talks to it.

use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::*;
use serde_json::Value;
use tokio::runtime::Runtime;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Response, Status};

use crate::cgroups;
use crate::suite::{Fail, Outcome, check, same, until};

const IMAGE: &str = "localhost/busybox:latest";

/// The longest that a call may take.
const CALL: Duration = Duration::from_secs(90);

/// The part of the server's log that is shown with a case that failed.
const SHOWN: usize = 4000;

type Client = RuntimeServiceClient<Channel>;

pub struct Host {
    programs: PathBuf,
    dir: tempfile::TempDir,
    tokio: Runtime,
    server: Option<Child>,
    client: Option<Client>,
    /// Every runtime of this machine.
    pub runtimes: Vec<String>,
    /// The one that pods are made with.
    pub handler: String,
    logged: usize,
    pods: u32,
}

/// A pod that was asked for, with what containers in it have to repeat.
#[derive(Clone, Debug)]
pub struct Pod {
    pub id: String,
    config: PodSandboxConfig,
}

impl Host {
    /// Starts a server that has an image.
    pub fn start(programs: &Path) -> Outcome<Host> {
        let mut host = Host {
            programs: programs.to_owned(),
            dir: tempfile::Builder::new().prefix("cri").tempdir()?,
            tokio: tokio::runtime::Builder::new_current_thread().enable_all().build()?,
            server: None,
            client: None,
            runtimes: Vec::new(),
            handler: String::new(),
            logged: 0,
            pods: 0,
        };
        let dir = host.dir.path().display();
        let config = format!(
            "socket = '{dir}/cri.sock'\nroot = '{dir}/root'\nrun = '{dir}/run'\nlog_level = 'conward_cri=debug'\n"
        );
        fs::write(host.dir.path().join("cri.toml"), config)?;
        let import = host.command(&["import", IMAGE, "busybox"]).output()?;
        check(import.status.success(), format!("import: {}", String::from_utf8_lossy(&import.stderr)))?;
        host.serve()?;
        let status = host.ask(async |client| client.status(StatusRequest::default()).await)?;
        let names = status.runtime_handlers.into_iter().map(|handler| handler.name);
        host.runtimes = names.filter(|name| !name.is_empty()).collect();
        check(!host.runtimes.is_empty(), "the server knows of no runtime")?;
        Ok(host)
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(self.programs.join("conward-cri"));
        command.args(words).arg("--config").arg(self.dir.path().join("cri.toml")).stdin(Stdio::null());
        command
    }

    /// Starts the server, or the next one.
    pub fn serve(&mut self) -> Outcome {
        let log = File::options().create(true).append(true).open(self.dir.path().join("log"))?;
        let server = self.command(&["serve"]).stdout(log.try_clone()?).stderr(log).spawn()?;
        self.server = Some(server);
        let endpoint = Endpoint::from_shared(format!("unix://{}/cri.sock", self.dir.path().display()))?;
        let client = until("the server answers", || {
            if let Some(status) = self.server.as_mut().and_then(|server| server.try_wait().ok()?) {
                return Err(Fail::Wrong(format!("the server ended with {status}: {}", self.log())));
            }
            Ok(self.tokio.block_on(endpoint.connect()).ok().map(RuntimeServiceClient::new))
        })?;
        self.client = Some(client);
        self.ask(async |client| client.version(VersionRequest::default()).await).map(drop)
    }

    /// Kills the server, as nothing that it could prepare for.
    pub fn kill(&mut self) -> Outcome {
        self.client = None;
        let mut server = self.server.take().ok_or("there is no server")?;
        server.kill()?;
        same("the server's end", server.wait()?.signal(), Some(9))
    }

    /// What the server has said since [`Host::skip_log`].
    pub fn log(&self) -> String {
        let text = fs::read(self.dir.path().join("log")).unwrap_or_default();
        let from = self.logged.max(text.len().saturating_sub(SHOWN));
        String::from_utf8_lossy(text.get(from..).unwrap_or_default()).trim_end().to_owned()
    }

    pub fn skip_log(&mut self) {
        let size = fs::metadata(self.dir.path().join("log")).map_or(0, |data| data.len());
        self.logged = usize::try_from(size).unwrap_or(usize::MAX);
    }

    /// Makes a call; its answer, or what the server said.
    pub fn ask<T>(&self, call: impl AsyncFnOnce(&mut Client) -> Result<Response<T>, Status>) -> Outcome<T> {
        self.try_ask(call)?.map_err(|status| Fail::Wrong(format!("{:?}: {}", status.code(), status.message())))
    }

    /// Makes a call that is to be refused with this code; what the server said.
    pub fn refused<T>(
        &self,
        code: Code,
        call: impl AsyncFnOnce(&mut Client) -> Result<Response<T>, Status>,
    ) -> Outcome<String> {
        match self.try_ask(call)? {
            Ok(_) => Err(Fail::Wrong(format!("was not refused, and {code:?} was expected"))),
            Err(status) if status.code() == code => Ok(status.message().to_owned()),
            Err(status) => Err(Fail::Wrong(format!("expected {code:?}, saw {status:?}"))),
        }
    }

    fn try_ask<T>(
        &self,
        call: impl AsyncFnOnce(&mut Client) -> Result<Response<T>, Status>,
    ) -> Outcome<Result<T, Status>> {
        let mut client = self.client.clone().ok_or("there is no server")?;
        let answer = self.tokio.block_on(async { tokio::time::timeout(CALL, call(&mut client)).await });
        let answer = answer.map_err(|_| Fail::Wrong(format!("no answer within {} s", CALL.as_secs())))?;
        Ok(answer.map(Response::into_inner))
    }

    /// Removes what a case has left.
    pub fn clear(&mut self) -> Outcome {
        if self.server.is_none() {
            self.serve()?;
        }
        let pods = self.ask(async |client| client.list_pod_sandbox(ListPodSandboxRequest::default()).await)?;
        pods.items.iter().try_for_each(|pod| self.remove_pod(&pod.id))
    }

    // ------------------------------------------------------------ pods

    /// A pod on the host's network, below a cgroup or without one of its own.
    pub fn pod(&mut self, parent: &str) -> Outcome<Pod> {
        self.pod_with(parent, NamespaceMode::Container, false)
    }

    /// The same with one pid namespace for all its containers.
    pub fn pod_of_one(&mut self, parent: &str) -> Outcome<Pod> {
        self.pod_with(parent, NamespaceMode::Pod, false)
    }

    /// One whose containers may do anything, and do.
    pub fn privileged_pod(&mut self, parent: &str) -> Outcome<Pod> {
        self.pod_with(parent, NamespaceMode::Container, true)
    }

    fn pod_with(&mut self, parent: &str, pids: NamespaceMode, privileged: bool) -> Outcome<Pod> {
        self.pods += 1;
        let name = format!("pod{}", self.pods);
        let logs = self.dir.path().join("logs").join(&name);
        fs::create_dir_all(&logs)?;
        let options =
            NamespaceOption { network: NamespaceMode::Node as i32, pid: pids as i32, ..NamespaceOption::default() };
        let config = PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: name.clone(),
                uid: name,
                namespace: "default".into(),
                attempt: 0,
            }),
            log_directory: logs.to_string_lossy().into_owned(),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: parent.to_owned(),
                security_context: Some(LinuxSandboxSecurityContext {
                    namespace_options: Some(options),
                    privileged,
                    ..LinuxSandboxSecurityContext::default()
                }),
                ..LinuxPodSandboxConfig::default()
            }),
            ..PodSandboxConfig::default()
        };
        let request = RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: self.handler.clone() };
        let id = self.ask(async |client| client.run_pod_sandbox(request).await)?.pod_sandbox_id;
        Ok(Pod { id, config })
    }

    pub fn remove_pod(&self, id: &str) -> Outcome {
        let request = StopPodSandboxRequest { pod_sandbox_id: id.to_owned() };
        self.ask(async |client| client.stop_pod_sandbox(request).await)?;
        let request = RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() };
        self.ask(async |client| client.remove_pod_sandbox(request).await).map(drop)
    }

    // ------------------------------------------------------------ containers

    /// What a container of this pod is asked for with.
    pub fn wish(pod: &Pod, name: &str, script: &str, resources: LinuxContainerResources) -> CreateContainerRequest {
        let context = pod.config.linux.as_ref().and_then(|linux| linux.security_context.clone()).unwrap_or_default();
        let config = ContainerConfig {
            metadata: Some(ContainerMetadata { name: name.to_owned(), attempt: 0 }),
            image: Some(ImageSpec { image: IMAGE.into(), ..ImageSpec::default() }),
            command: ["sh", "-c", script].map(str::to_owned).into(),
            log_path: format!("{name}.log"),
            linux: Some(LinuxContainerConfig {
                resources: Some(resources),
                security_context: Some(LinuxContainerSecurityContext {
                    namespace_options: context.namespace_options,
                    privileged: context.privileged,
                    ..LinuxContainerSecurityContext::default()
                }),
            }),
            ..ContainerConfig::default()
        };
        CreateContainerRequest {
            pod_sandbox_id: pod.id.clone(),
            config: Some(config),
            sandbox_config: Some(pod.config.clone()),
        }
    }

    pub fn create(&self, request: CreateContainerRequest) -> Outcome<String> {
        Ok(self.ask(async |client| client.create_container(request).await)?.container_id)
    }

    pub fn begin(&self, container: &str) -> Outcome {
        let request = StartContainerRequest { container_id: container.to_owned() };
        self.ask(async |client| client.start_container(request).await).map(drop)
    }

    /// Creates and starts a container that runs a script.
    pub fn run(&self, pod: &Pod, name: &str, script: &str, resources: LinuxContainerResources) -> Outcome<String> {
        let id = self.create(Host::wish(pod, name, script, resources))?;
        self.begin(&id)?;
        Ok(id)
    }

    /// The same without limits.
    pub fn plain(&self, pod: &Pod, name: &str, script: &str) -> Outcome<String> {
        self.run(pod, name, script, LinuxContainerResources::default())
    }

    pub fn stop(&self, container: &str, timeout: i64) -> Outcome {
        let request = StopContainerRequest { container_id: container.to_owned(), timeout };
        self.ask(async |client| client.stop_container(request).await).map(drop)
    }

    pub fn remove(&self, container: &str) -> Outcome {
        let request = RemoveContainerRequest { container_id: container.to_owned() };
        self.ask(async |client| client.remove_container(request).await).map(drop)
    }

    pub fn status(&self, container: &str) -> Outcome<ContainerStatus> {
        let request = ContainerStatusRequest { container_id: container.to_owned(), verbose: false };
        let answer = self.ask(async |client| client.container_status(request).await)?;
        Ok(answer.status.ok_or("a status without one")?)
    }

    pub fn is(&self, container: &str, state: ContainerState) -> Outcome<bool> {
        Ok(self.status(container)?.state == state as i32)
    }

    /// Waits for the end: exit code and reason.
    pub fn ended(&self, container: &str) -> Outcome<(i32, String)> {
        let status = until("the container's end", || {
            Ok(Some(self.status(container)?).filter(|status| status.state == ContainerState::ContainerExited as i32))
        })?;
        Ok((status.exit_code, status.reason))
    }

    /// What only a verbose status tells: the first process, the bundle.
    fn info(&self, container: &str) -> Outcome<Value> {
        let request = ContainerStatusRequest { container_id: container.to_owned(), verbose: true };
        let answer = self.ask(async |client| client.container_status(request).await)?;
        Ok(serde_json::from_str(answer.info.get("info").ok_or("a verbose status without info")?)?)
    }

    pub fn pid(&self, container: &str) -> Outcome<i32> {
        let pid = self.info(container)?["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok());
        pid.filter(|pid| *pid > 0).ok_or_else(|| Fail::Wrong(format!("container {container} has no process")))
    }

    pub fn monitor(&self, container: &str) -> Outcome<i32> {
        let info = self.info(container)?;
        let bundle = Path::new(info["bundle"].as_str().ok_or("no bundle")?);
        Ok(fs::read_to_string(bundle.join("monitor.pid"))?.trim().parse()?)
    }

    /// The cgroup that the container's first process is in.
    pub fn cgroup(&self, container: &str) -> Outcome<String> {
        cgroups::of(self.pid(container)?)
    }

    /// The container's log, without what is in front of each line.
    pub fn said(&self, container: &str) -> Outcome<String> {
        let text = fs::read_to_string(self.status(container)?.log_path)?;
        let lines = text.lines().filter_map(|line| line.splitn(4, ' ').nth(3));
        Ok(lines.collect::<Vec<_>>().join("\n"))
    }

    /// Waits until the container has said something.
    pub fn says(&self, container: &str, word: &str) -> Outcome {
        until(&format!("the container says {word:?}"), || Ok(self.said(container)?.contains(word).then_some(())))
    }

    pub fn exec_request(container: &str, script: &str, timeout: i64) -> ExecSyncRequest {
        ExecSyncRequest {
            container_id: container.to_owned(),
            cmd: ["sh", "-c", script].map(str::to_owned).into(),
            timeout,
        }
    }

    /// What a script in the container says, which has to succeed.
    pub fn exec(&self, container: &str, script: &str) -> Outcome<String> {
        let request = Host::exec_request(container, script, 60);
        let answer = self.ask(async |client| client.exec_sync(request).await)?;
        let said = String::from_utf8_lossy(&answer.stdout).trim().to_owned();
        let wrong = String::from_utf8_lossy(&answer.stderr);
        check(answer.exit_code == 0, format!("{script:?}: exit code {}: {said}{wrong}", answer.exit_code))?;
        Ok(said)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Some(mut server) = self.server.take() {
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}

/// A script that says `up` and goes on when a file is there.
pub fn waiting(then: &str) -> String {
    format!("echo up; until [ -e /go ]; do sleep 0.1; done; {then}")
}

/// Lets a container go on that [`waiting`] has made; nobody has to be asked for that.
pub fn go(pid: i32) -> Outcome {
    Ok(fs::write(format!("/proc/{pid}/root/go"), "")?)
}
