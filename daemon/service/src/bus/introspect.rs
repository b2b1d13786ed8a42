//! Introspection whose answers stay small. The object server would write the whole tree into the root's answer, which
//! with ten thousand jobs is more than a bus lets through. Here the nodes above the jobs answer with the names of their
//! children.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use zbus::message::Header;
use zbus::object_server::{Interface, ObjectServer};
use zbus::{Connection, fdo, interface};

use super::guarded::Guarded;
use super::{Hub, Manager, PATH};

/// The interface that every node has. The library does not publish its own description of it.
const PEER: &str = "  <interface name=\"org.freedesktop.DBus.Peer\">
    <method name=\"Ping\"/>
    <method name=\"GetMachineId\">
      <arg name=\"machine_uuid\" type=\"s\" direction=\"out\"/>
    </method>
  </interface>
";

/// Whether the node above the jobs answers for itself. That node exists only while a job has an object.
#[derive(Default)]
pub struct Tree(AtomicBool);

impl Tree {
    /// Takes note of an added job object.
    pub async fn grown(&self, connection: &Connection, hub: &Arc<Hub>) -> zbus::Result<()> {
        if self.0.swap(true, Ordering::Relaxed) {
            return Ok(());
        }
        replace(connection, hub, &format!("{PATH}/job")).await
    }

    /// Takes note of a removed job object; `empty` if it was the last one.
    pub fn shrunk(&self, empty: bool) {
        if empty {
            self.0.store(false, Ordering::Relaxed);
        }
    }
}

/// Makes the nodes above the jobs answer for themselves.
pub async fn plant(connection: &Connection, hub: &Arc<Hub>) -> zbus::Result<()> {
    for (at, _) in PATH.match_indices('/') {
        replace(connection, hub, if at == 0 { "/" } else { &PATH[..at] }).await?;
    }
    replace(connection, hub, PATH).await
}

async fn replace(connection: &Connection, hub: &Arc<Hub>, path: &str) -> zbus::Result<()> {
    let server = connection.object_server();
    server.remove_named(path, Node::name()).await?;
    server.at(path, Node { hub: hub.clone() }).await?;
    Ok(())
}

struct Node {
    hub: Arc<Hub>,
}

#[interface(name = "org.freedesktop.DBus.Introspectable", introspection_docs = false)]
impl Node {
    #[zbus(out_args("xml_data"))]
    async fn introspect(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(object_server)] server: &ObjectServer,
    ) -> fdo::Result<String> {
        let path = header.path().map_or("/", |path| path.as_str());
        let mut xml = String::from(
            "<!DOCTYPE node PUBLIC \"-//freedesktop//DTD D-BUS Object Introspection 1.0//EN\"\n \
             \"http://www.freedesktop.org/standards/dbus/1.0/introspect.dtd\">\n<node>\n",
        );
        self.introspect_to_writer(&mut xml, 2);
        xml.push_str(PEER);
        write_interface::<fdo::Properties>(server, path, &mut xml).await?;
        if path == PATH {
            write_interface::<fdo::ObjectManager>(server, path, &mut xml).await?;
            write_interface::<Guarded<Manager>>(server, path, &mut xml).await?;
        }
        let jobs = format!("{PATH}/job");
        if path == jobs {
            for id in self.hub.cards.ids() {
                _ = writeln!(xml, "  <node name=\"{id}\"/>");
            }
        } else if let Some(below) = jobs.strip_prefix(path.trim_end_matches('/'))
            && let Some(child) = below.split('/').nth(1)
            && (path != PATH || !self.hub.cards.is_empty())
        {
            _ = writeln!(xml, "  <node name=\"{child}\"/>");
        }
        xml.push_str("</node>\n");
        Ok(xml)
    }
}

async fn write_interface<I: Interface>(
    server: &ObjectServer,
    path: &str,
    xml: &mut String,
) -> zbus::Result<()> {
    server.interface::<_, I>(path).await?.get().await.introspect_to_writer(xml, 2);
    Ok(())
}
