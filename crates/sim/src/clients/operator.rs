//! An operator, who gives dead letters another chance.

use posthouse::broker::Caller;
use posthouse::broker::letters::Which;

use super::{Client, Kept, draw};
use crate::history::{Fail, What};

/// Redrives until the node is healed.
pub async fn lead(client: Client, kept: Kept) {
    loop {
        let mut rng = draw(&kept, |memory| memory.rng.split());
        client.rest(&mut rng, 50, 800).await;
        if client.is_draining() {
            return;
        }
        let group = rng.pick(&client.shared.scene.groups).name;
        if rng.chance(1, 3) {
            // Both see the same letters.
            tokio::join!(redrive(&client, group), redrive(&client, group));
        } else {
            redrive(&client, group).await;
        }
    }
}

async fn redrive(client: &Client, group: &'static str) {
    let history = &client.shared.history;
    let call = history.call();
    history.note(client.who, What::Redrive { call, group });
    let outcome = client.broker.redrive(&Caller::Anyone, group, &Which::All, None).await;
    let outcome = outcome.map(|redriven| redriven.redriven).map_err(Fail::from);
    history.note(client.who, What::Redriven { call, outcome });
}
