//! Several containers, and with them several monitors, under one name.

use super::{
    Verdict,
    bed::{Bed, IMAGE, PARK},
    check,
    processes::listed,
};

pub fn pod(bed: &Bed) -> Verdict {
    bed.ok(&["pod", "create", "--name", "p", "--network", "none", "--infra-image", IMAGE])?;
    for name in ["one", "two"] {
        bed.ok(&["run", "-d", "--pod", "p", "--name", name, IMAGE, "sh", "-c", &format!("echo {name} runs; {PARK}")])?;
        bed.logged(name, &format!("{name} runs"))?;
    }
    let state = |expected: &str| -> Verdict {
        let pods = bed.ok(&["pod", "ps", "--format", "{{.Name}} {{.Status}} {{.NumberOfContainers}}"])?;
        check!(pods == format!("p {expected} 3"), "pod ps: {pods:?}, expected {expected}");
        Ok(())
    };
    state("Running")?;
    check!(bed.monitors().len() == 3, "two containers and the pod's own:{}", listed(&bed.monitors()));
    bed.podman(&["exec", "two", "sh", "-c", "hostname"]).run()?.expect(0)?.says("p\n")?;
    bed.ok(&["pod", "stop", "-t", "20", "p"])?;
    state("Exited")?;
    bed.without_monitors()?;
    bed.ok(&["pod", "start", "p"])?;
    state("Running")?;
    bed.logged("one", "one runs\none runs")?;
    bed.ok(&["pod", "restart", "p"])?;
    state("Running")?;
    bed.ok(&["pod", "kill", "p"])?;
    bed.ok(&["pod", "rm", "p"])?;
    bed.without_monitors()
}

pub fn play_kube(bed: &Bed) -> Verdict {
    let yaml = format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: kube\nspec:\n  hostNetwork: true\n  restartPolicy: Never\n  containers:\n{}{}",
        kube_container("one", "echo from one; exit 4"),
        kube_container("two", &format!("echo from two; {PARK}")),
    );
    let file = bed.write("pod.yaml", yaml)?;
    bed.ok(&["play", "kube", &file])?;
    bed.logged("kube-one", "from one")?;
    bed.logged("kube-two", "from two")?;
    let code = bed.ok(&["wait", "kube-one"])?;
    check!(code == "4", "the first container ended with {code}");
    bed.ok(&["play", "kube", "--down", &file])?;
    let left = bed.ok(&["ps", "-aq"])?;
    check!(left.is_empty(), "containers after --down: {left}");
    bed.without_monitors()
}

fn kube_container(name: &str, script: &str) -> String {
    format!("  - name: {name}\n    image: {IMAGE}\n    command: [\"/bin/sh\", \"-c\", \"{script}\"]\n")
}
