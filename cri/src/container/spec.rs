use k8s_cri::v1::LinuxContainerResources;
use crate::error::Result;
pub fn updated(_: Option<&LinuxContainerResources>, _: &LinuxContainerResources) -> Result<(LinuxContainerResources, Vec<u8>)> { todo!() }
