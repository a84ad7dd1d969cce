//! `stopover robot …`.

use stopover::operate::{RobotAnswer, RobotCommand, RobotStatus};

use super::Client;

impl Client {
    /// One line per robot, or a secret.
    pub(crate) async fn robots(&self, command: &RobotCommand) -> anyhow::Result<()> {
        let body = serde_json::to_string(command)?;
        self.output.show(&self.ask(self.http.post(self.url("robots")).body(body)).await?, told)
    }
}

fn told(answer: &RobotAnswer) -> String {
    match answer {
        RobotAnswer::Robots(robots) if robots.is_empty() => "there are no robots\n".into(),
        RobotAnswer::Robots(robots) => robots.iter().map(line).collect(),
        RobotAnswer::Secret { name, secret, replaced_until } => {
            let before = replaced_until.map(|until| {
                format!(
                    "The secret before is taken until {}. To end that at once, rotate again with --overlap 0s: that \
                     makes another secret, and neither of these is taken any more.\n",
                    until.date()
                )
            });
            format!(
                "user    {name}\nsecret  {}\nIt is shown this once and kept nowhere; {name} logs in with it as a user \
                 with a password.\n{}",
                secret.as_str(),
                before.unwrap_or_default()
            )
        }
        RobotAnswer::Removed(name) => {
            format!("{name} is removed; tokens that it has are good for half a minute more\n")
        }
    }
}

fn line(robot: &RobotStatus) -> String {
    let RobotStatus { name, created_at, expires_at, expired, replaced_until } = robot;
    let verb = if *expired { "expired" } else { "expires" };
    let expires = expires_at.map_or_else(|| "never expires".into(), |at| format!("{verb} {}", at.date()));
    let replaced = replaced_until.map(|until| format!(", its secret before is taken until {}", until.date()));
    format!("{name}: made {}, {expires}{}\n", created_at.date(), replaced.unwrap_or_default())
}
