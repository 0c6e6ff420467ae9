use std::net::IpAddr;
use std::path::PathBuf;
use crate::error::Result;
#[derive(Debug)]
pub struct Network;
pub struct PodNetwork { pub id: String, pub name: String, pub namespace: String, pub uid: String, pub netns: PathBuf, pub ports: Vec<PortMapping>, pub dns: crate::sandbox::dns::Dns, pub annotations: std::collections::BTreeMap<String, String> }
pub struct PortMapping { pub container_port: u16, pub host_port: u16, pub protocol: String, pub host_ip: String }
impl Network {
    pub fn new(_: &crate::config::Config) -> Result<Network> { todo!() }
    pub fn ready(&self) -> Result<()> { todo!() }
    pub async fn add(&self, _: &PodNetwork) -> Result<Vec<IpAddr>> { todo!() }
    pub async fn del(&self, _: &PodNetwork) -> Result<()> { todo!() }
    pub fn set_pod_cidr(&self, _: &str) -> Result<()> { todo!() }
    pub fn info(&self) -> serde_json::Value { todo!() }
}
