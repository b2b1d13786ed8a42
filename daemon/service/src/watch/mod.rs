//! Watched folders: a picture that is complete becomes a job, with what its sidecar and its folder say.
//!
//! A [`Folder`](animd_common::watch::Folder) looks at one folder with everything below it and hands complete pictures to
//! an [`Intake`], which queues them.

mod folders;
mod intake;

pub use folders::Folders;
pub use intake::Intake;

use crate::events::Events;
use crate::store::Watches;

/// Says in the service's state how many watched folders are not used because their paths lead elsewhere, if any are.
fn tell_of_swapped(watches: &Watches, events: &Events) {
    let what = match watches.swapped().len() {
        0 => None,
        1 => Some("a watched folder is not used, because its path leads elsewhere".to_owned()),
        n => Some(format!("{n} watched folders are not used, because their paths lead elsewhere")),
    };
    events.set_folders(what.map(|what| format!("{what}: `animctl folder list` tells more")));
}
