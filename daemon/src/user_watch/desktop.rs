//! Notifications on the user's desktop, where there is one.

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::timeout;
use zbus::{Connection, Variant, proxy};

use crate::files::show;

/// How long a desktop may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// How many thumbnails are kept for notifications that are still shown.
const THUMBNAILS: u64 = 16;
/// The largest thumbnail in bytes.
const MAX_THUMBNAIL: u64 = 4 << 20;

#[proxy(
    interface = "org.freedesktop.Notifications",
    default_service = "org.freedesktop.Notifications",
    default_path = "/org/freedesktop/Notifications"
)]
trait Notifications {
    #[expect(clippy::too_many_arguments, reason = "the desktop's interface is so")]
    fn notify(
        &self,
        app_name: &str,
        replaces_id: u32,
        app_icon: &str,
        summary: &str,
        body: &str,
        actions: &[&str],
        hints: HashMap<&str, Variant<'_>>,
        expire_timeout: i32,
    ) -> zbus::Result<u32>;
}

/// The desktop, if there is one.
#[derive(Clone)]
pub struct Desktop {
    session: Option<Connection>,
    thumbnails: Option<PathBuf>,
}

impl Desktop {
    /// On the session's bus.
    pub fn new(session: Option<Connection>) -> Self {
        let runtime =
            std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute());
        Self { session, thumbnails: runtime.map(|runtime| runtime.join("animd-watch")) }
    }

    /// Whether anybody would see a thumbnail.
    pub fn shows(&self) -> bool {
        self.session.is_some() && self.thumbnails.is_some()
    }

    /// A video is there.
    pub fn done(&self, id: u64, picture: &Path, video: &Path, thumbnail: Option<File>) {
        let image = thumbnail.and_then(|file| self.put(id, file));
        let body = format!("The video of {} is {}.", name(picture), escape(&show(video)));
        self.tell("A video is ready", body, "transfer.complete", image);
    }

    /// A picture has no video, and why.
    pub fn failed(&self, picture: &Path, why: &str) {
        let body = format!("{}: {}", name(picture), escape(why));
        self.tell("A picture did not become a video", body, "transfer.error", None);
    }

    fn put(&self, id: u64, thumbnail: File) -> Option<PathBuf> {
        use std::io::Read;
        let dir = self.thumbnails.as_ref()?;
        let mut bytes = Vec::new();
        thumbnail.take(MAX_THUMBNAIL).read_to_end(&mut bytes).ok()?;
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).ok()?;
        // The newest ones only: this folder is in memory.
        let path = dir.join(format!("{}.jpg", id % THUMBNAILS));
        crate::files::write_atomic(&path, &bytes, 0o600).ok()?;
        Some(path)
    }

    /// Not awaited: a desktop that hangs holds up no picture.
    fn tell(&self, summary: &'static str, body: String, category: &'static str, image: Option<PathBuf>) {
        let Some(session) = self.session.clone() else { return };
        tokio::spawn(async move {
            let telling = async {
                let desktop = NotificationsProxy::new(&session).await?;
                let mut hints = HashMap::from([("category", category.into())]);
                let image = image.and_then(|path| path.into_os_string().into_string().ok());
                if let Some(image) = &image {
                    hints.insert("image-path", image.as_str().into());
                }
                desktop.notify("animd", 0, "video-x-generic", summary, &body, &[], hints, -1).await
            };
            match timeout(PATIENCE, telling).await {
                Ok(Ok(_)) => {}
                Ok(Err(e)) => tracing::debug!("the desktop was not told: {e}"),
                Err(_) => tracing::debug!("the desktop does not answer"),
            }
        });
    }
}

fn name(path: &Path) -> String {
    escape(&show(path.file_name().unwrap_or_default()))
}

/// A notification's text is markup.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_no_markup() {
        assert_eq!(name(Path::new("/x/a<b>&\n.png")), "a&lt;b&gt;&amp;\\n.png");
    }
}
