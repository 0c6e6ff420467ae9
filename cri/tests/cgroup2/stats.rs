//! What containers and pods use, as the kubelet asks for it.

use std::time::Duration;

use k8s_cri::v1::*;

use crate::cgroups::Parent;
use crate::host::{Host, Pod};
use crate::suite::{Case, Fail, Outcome, check, same, until};

pub fn cases() -> Vec<Case> {
    vec![
        Case::new("stats/container", "a busy loop, 32 MiB of memory and what is left of the limit", container),
        Case::new("stats/pod", "a pod's own cgroup: processes, cpu and memory of all its containers", pod),
        Case::new("stats/metrics", "the same as metrics, with limits, throttling and swap", metrics),
        Case::new("stats/pressure", "waiting for a processor is seen in the metrics", pressure),
    ]
}

const MIB: u64 = 1 << 20;
/// Another process holds 32 MiB, and then this one burns what it gets of a processor. Who copies does not get rid of
/// more than a pipe takes.
const SCRIPT: &str = "until [ -e /memory ]; do sleep 0.1; done; mkfifo /pipe; \
                      (head -c 1 >/dev/null; touch /held; exec sleep 3000) </pipe & \
                      dd if=/dev/zero of=/pipe bs=32M count=1 & \
                      until [ -e /burn ]; do sleep 0.1; done; while :; do :; done";

fn value(number: &Option<UInt64Value>) -> Outcome<u64> {
    number.map(|number| number.value).ok_or_else(|| Fail::Wrong("a figure is missing".to_owned()))
}

fn of_container(host: &Host, container: &str) -> Outcome<(CpuUsage, MemoryUsage)> {
    let request = ContainerStatsRequest { container_id: container.to_owned() };
    let stats = host.ask(async |client| client.container_stats(request).await)?.stats.ok_or("no stats")?;
    Ok((stats.cpu.ok_or("no cpu")?, stats.memory.ok_or("no memory")?))
}

fn of_pod(host: &Host, pod: &Pod) -> Outcome<LinuxPodSandboxStats> {
    let request = PodSandboxStatsRequest { pod_sandbox_id: pod.id.clone() };
    let stats = host.ask(async |client| client.pod_sandbox_stats(request).await)?.stats.ok_or("no stats")?;
    Ok(stats.linux.ok_or("no stats for Linux")?)
}

fn hold(host: &Host, container: &str) -> Outcome {
    host.exec(container, "touch /memory; until [ -e /held ]; do sleep 0.1; done").map(drop)
}

fn limits() -> LinuxContainerResources {
    LinuxContainerResources {
        memory_limit_in_bytes: 256 << 20,
        cpu_period: 100_000,
        cpu_quota: 30_000,
        ..LinuxContainerResources::default()
    }
}

fn container(host: &mut Host) -> Outcome {
    let parent = Parent::new("podstats")?;
    let pod = host.pod(&parent.path)?;
    let container = host.run(&pod, "main", SCRIPT, limits())?;
    let calm = of_container(host, &container)?.1;
    hold(host, &container)?;
    let held = of_container(host, &container)?.1;
    for (what, before, after) in [
        ("usage", &calm.usage_bytes, &held.usage_bytes),
        ("working set", &calm.working_set_bytes, &held.working_set_bytes),
        ("rss", &calm.rss_bytes, &held.rss_bytes),
    ] {
        let grown = value(after)?.saturating_sub(value(before)?);
        check((32 * MIB..160 * MIB).contains(&grown), format!("{what} has grown by {grown}"))?;
    }
    check(value(&held.page_faults)? > value(&calm.page_faults)?, format!("no faults: {held:?}"))?;
    let left = 256 * MIB - value(&held.working_set_bytes)?;
    same("available", value(&held.available_bytes)?, left)?;
    host.exec(&container, "touch /burn")?;
    std::thread::sleep(Duration::from_millis(500));
    let before = of_container(host, &container)?.0;
    std::thread::sleep(Duration::from_secs(3));
    let after = of_container(host, &container)?.0;
    let used = value(&after.usage_core_nano_seconds)?.saturating_sub(value(&before.usage_core_nano_seconds)?);
    let passed = u64::try_from(after.timestamp - before.timestamp)?;
    // It may have 30 % of one.
    check((passed / 20..passed / 2).contains(&used), format!("{used} ns of cpu in {passed} ns"))?;
    let cores = value(&after.usage_nano_cores)?;
    check((50_000_000..500_000_000).contains(&cores), format!("nano cores: {cores}"))?;
    host.remove_pod(&pod.id)?;
    parent.remove()
}

fn pod(host: &mut Host) -> Outcome {
    let parent = Parent::new("podsum")?;
    parent.write("memory.max", "536870912")?;
    let pod = host.pod(&parent.path)?;
    let empty = of_pod(host, &pod)?;
    same("processes of an empty pod", value(&empty.process.unwrap_or_default().process_count)?, 0)?;
    let one = host.run(&pod, "one", SCRIPT, limits())?;
    let other = host.plain(&pod, "other", "sleep 2000 & echo up; exec sleep 2001")?;
    host.says(&other, "up")?;
    hold(host, &one)?;
    // The first waits with the help of one more.
    let seen = until("the figures of six processes", || {
        let stats = of_pod(host, &pod)?;
        let count = value(&stats.process.unwrap_or_default().process_count)?;
        Ok((count == 6).then_some(stats))
    })?;
    let mut names: Vec<_> =
        seen.containers.iter().filter_map(|one| Some(one.attributes.as_ref()?.id.clone())).collect();
    names.sort();
    let mut expected = vec![one.clone(), other.clone()];
    expected.sort();
    same("containers", names, expected)?;
    let memory = seen.memory.unwrap_or_default();
    let own = of_container(host, &one)?.1;
    check(
        value(&memory.working_set_bytes)? >= value(&own.rss_bytes)?.max(32 * MIB),
        format!("the pod has {memory:?}, and a container of it {own:?}"),
    )?;
    let available = value(&memory.available_bytes)?;
    same("available", available, 512 * MIB - value(&memory.working_set_bytes)?)?;
    let cpu = value(&seen.cpu.unwrap_or_default().usage_core_nano_seconds)?;
    check(cpu > 0, "the pod has used no cpu")?;
    // What an ended container has used stays used.
    host.stop(&one, 0)?;
    host.remove(&one)?;
    let after = value(&of_pod(host, &pod)?.cpu.unwrap_or_default().usage_core_nano_seconds)?;
    check(after >= cpu, format!("the pod has used {cpu} ns, and then {after} ns"))?;
    host.remove_pod(&pod.id)?;
    parent.remove()
}

/// The metrics of a container by name, or of its pod.
pub fn metrics_of(host: &Host, pod: &Pod) -> Outcome<(Vec<Metric>, Vec<Metric>)> {
    let request = ListPodSandboxMetricsRequest::default();
    let all = host.ask(async |client| client.list_pod_sandbox_metrics(request).await)?.pod_metrics;
    let own = all.into_iter().find(|one| one.pod_sandbox_id == pod.id).ok_or("the pod has no metrics")?;
    let container = own.container_metrics.into_iter().next().ok_or("no container has metrics")?;
    Ok((own.metrics, container.metrics))
}

pub fn metric(all: &[Metric], name: &str) -> Outcome<u64> {
    let found = all.iter().find(|metric| metric.name == name);
    value(&found.ok_or_else(|| format!("there is no {name}"))?.value)
}

fn metrics(host: &mut Host) -> Outcome {
    let parent = Parent::new("podmetrics")?;
    let pod = host.pod(&parent.path)?;
    let container = host.run(&pod, "main", SCRIPT, limits())?;
    hold(host, &container)?;
    host.exec(&container, "touch /burn")?;
    // Seconds are whole ones. What the loop before the last waited with may still be there.
    let (of_pod, own) = until("two seconds of cpu, used by three processes", || {
        let (of_pod, own) = metrics_of(host, &pod)?;
        let enough = metric(&own, "container_cpu_usage_seconds_total")? >= 2;
        let throttled = metric(&own, "container_cpu_cfs_throttled_seconds_total")? >= 1;
        let three = metric(&own, "container_processes")? == 3;
        Ok((enough && throttled && three).then_some((of_pod, own)))
    })?;
    for all in [&of_pod, &own] {
        for name in ["container_memory_working_set_bytes", "container_memory_usage_bytes", "container_memory_rss"] {
            let value = metric(all, name)?;
            check((32 * MIB..256 * MIB).contains(&value), format!("{name} is {value}"))?;
        }
        check(metric(all, "container_cpu_usage_seconds_total")? >= 2, "cpu")?;
        check(metric(all, "container_memory_max_usage_bytes")? >= 32 * MIB, "the most memory")?;
    }
    for (name, expected) in [
        ("container_spec_memory_limit_bytes", 256 * MIB),
        ("container_spec_cpu_quota", 30_000),
        ("container_spec_cpu_period", 100_000),
        ("container_threads", 3),
        ("container_oom_events_total", 0),
        ("container_memory_swap", 0),
    ] {
        same(name, metric(&own, name)?, expected)?;
    }
    for name in
        ["container_cpu_cfs_periods_total", "container_cpu_cfs_throttled_periods_total", "container_start_time_seconds"]
    {
        check(metric(&own, name)? > 0, format!("{name} is nothing"))?;
    }
    host.remove_pod(&pod.id)?;
    parent.remove()
}

fn pressure(host: &mut Host) -> Outcome {
    if std::fs::read_to_string("/proc/pressure/cpu").is_err() {
        return Err(Fail::Skip("this kernel does not count who waits".to_owned()));
    }
    let parent = Parent::new("podpressure")?;
    let pod = host.pod(&parent.path)?;
    let resources =
        LinuxContainerResources { cpu_period: 100_000, cpu_quota: 20_000, ..LinuxContainerResources::default() };
    let container = host.run(&pod, "main", "while :; do :; done", resources)?;
    let seen = until("two seconds of waiting for a processor", || {
        let (_, own) = metrics_of(host, &pod)?;
        Ok((metric(&own, "container_pressure_cpu_waiting_seconds_total")? >= 2).then_some(own))
    })?;
    for name in ["cpu_stalled", "io_waiting", "io_stalled", "memory_waiting", "memory_stalled"] {
        metric(&seen, &format!("container_pressure_{name}_seconds_total"))?;
    }
    host.stop(&container, 0)?;
    host.remove_pod(&pod.id)?;
    parent.remove()
}
