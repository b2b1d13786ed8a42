//! Notifications on the user's desktop, where there is one.

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use animd_common::files::show;
use animd_common::text::Text;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use zbus::{Connection, Variant, proxy};

/// How long a desktop may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Events within this time share one notification.
const TOGETHER: Duration = Duration::from_millis(500);
/// How many pictures one notification names.
const MOST_LINES: usize = 3;
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
pub struct Desktop {
    told: Option<mpsc::UnboundedSender<Told>>,
    thumbnails: Option<PathBuf>,
}

/// An event to notify the desktop of.
enum Told {
    Done { body: String, image: Option<PathBuf> },
    Failed { body: String },
}

impl Desktop {
    /// Returns the desktop on the session's bus.
    pub fn new(session: Option<Connection>) -> Self {
        let runtime =
            std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute());
        // This is not awaited, so that a desktop that hangs holds up no picture.
        let told = session.map(|session| {
            let (sender, told) = mpsc::unbounded_channel();
            tokio::spawn(tell_all(session, told));
            sender
        });
        Self { told, thumbnails: runtime.map(|runtime| runtime.join("animd-watch")) }
    }

    /// Returns whether anybody would see a thumbnail.
    pub fn shows(&self) -> bool {
        self.told.is_some() && self.thumbnails.is_some()
    }

    /// Notifies the desktop of a finished video.
    pub fn done(&self, id: u64, picture: &Path, video: &Path, thumbnail: Option<File>) {
        let image = thumbnail.and_then(|file| self.put(id, file));
        let body = format!("The video of {} is {}.", name(picture), escape(&show(video)));
        self.tell(Told::Done { body, image });
    }

    /// Notifies the desktop that a picture has failed, and why.
    pub fn failed(&self, picture: &Path, why: &str) {
        self.tell(Told::Failed { body: format!("{}: {}", name(picture), escape(why)) });
    }

    fn tell(&self, told: Told) {
        if let Some(sender) = &self.told {
            _ = sender.send(told);
        }
    }

    fn put(&self, id: u64, thumbnail: File) -> Option<PathBuf> {
        use std::io::Read;
        let dir = self.thumbnails.as_ref()?;
        let mut bytes = Vec::new();
        thumbnail.take(MAX_THUMBNAIL).read_to_end(&mut bytes).ok()?;
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).ok()?;
        // Keeps only the newest thumbnails, because this folder is in memory.
        let path = dir.join(format!("{}.jpg", id % THUMBNAILS));
        animd_common::files::write_atomic(&path, &bytes, 0o600).ok()?;
        Some(path)
    }
}

/// Notifies the desktop. Events that come together share one notification, so that a thousand pictures with one mistake
/// do not cause a thousand.
async fn tell_all(session: Connection, mut told: mpsc::UnboundedReceiver<Told>) {
    while let Some(first) = told.recv().await {
        sleep(TOGETHER).await;
        let (mut done, mut failed, mut images) = (Vec::new(), Vec::new(), None);
        let mut next = Some(first);
        while let Some(one) = next {
            match one {
                Told::Done { body, image } => {
                    images = image.or(images);
                    done.push(body);
                }
                Told::Failed { body } => failed.push(body),
            }
            next = told.try_recv().ok();
        }
        let ready = ("A video is ready", format!("{} videos are ready", done.len()));
        let without =
            ("A picture did not become a video", format!("{} pictures did not become videos", failed.len()));
        notify(&session, ready, &done, "transfer.complete", images).await;
        notify(&session, without, &failed, "transfer.error", None).await;
    }
}

async fn notify(
    session: &Connection,
    (one, many): (&str, String),
    bodies: &[String],
    category: &str,
    image: Option<PathBuf>,
) {
    let summary = match bodies.len() {
        0 => return,
        1 => one,
        _ => &many,
    };
    let mut body = bodies[..bodies.len().min(MOST_LINES)].join("\n");
    if bodies.len() > MOST_LINES {
        body += "\n…";
    }
    let telling = async {
        let desktop = NotificationsProxy::new(session).await?;
        let mut hints = HashMap::from([("category", category.into())]);
        let image = image.and_then(|path| path.into_os_string().into_string().ok());
        if let Some(image) = &image {
            hints.insert("image-path", image.as_str().into());
        }
        let body = Text::from(body);
        desktop.notify("animd", 0, "video-x-generic", summary, &body, &[], hints, -1).await
    };
    match timeout(PATIENCE, telling).await {
        Ok(Ok(_)) => {}
        Ok(Err(e)) => tracing::debug!("the desktop was not told: {e}"),
        Err(_) => tracing::debug!("the desktop does not answer"),
    }
}

fn name(path: &Path) -> String {
    escape(&show(path.file_name().unwrap_or_default()))
}

/// Escapes `text` for a notification, whose text is markup.
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
