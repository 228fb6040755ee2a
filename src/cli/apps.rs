//! `archiver apps …`

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Subcommand;
use secrecy::ExposeSecret;

use super::{print_json, print_line};
use crate::auth::applications::{self, NewApplication, NewKey};
use crate::config::{DurationValue, Settings};
use crate::model::ids::ApplicationId;
use crate::model::time::Wallclock;

#[derive(Debug, Subcommand)]
pub(super) enum AppsCommand {
    /// Add an application. A unified one (Vonage) signs with a private key, of which the public half is given here; a legacy
    /// one (OpenTok) is an API key and a secret, which are made here unless they are given.
    #[command(group = clap::ArgGroup::new("kind").required(true).args(["unified", "legacy"]))]
    Add {
        /// Vonage's kind: a UUID and an RSA key pair.
        #[arg(long, requires = "public_key")]
        unified: bool,
        /// OpenTok's kind: a number and a secret.
        #[arg(long, conflicts_with = "public_key")]
        legacy: bool,
        /// Its id: a UUID, or a number; a new one without.
        #[arg(long)]
        id: Option<ApplicationId>,
        /// The public key (PEM): `openssl rsa -in private.key -pubout -out public.pem`.
        #[arg(long, value_name = "FILE")]
        public_key: Option<PathBuf>,
        /// The secret; better in a file, which other users of this machine cannot read off the command line.
        #[arg(long, requires = "legacy", conflicts_with = "secret_file")]
        secret: Option<String>,
        /// A file with the secret.
        #[arg(long, value_name = "FILE", requires = "legacy")]
        secret_file: Option<PathBuf>,
        /// What people call it.
        #[arg(long, default_value = "")]
        name: String,
        /// Where callbacks go.
        #[arg(long, value_name = "URL")]
        callback_url: Option<String>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// List applications.
    List {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Give an application another key. The one before stays good for a while, so that no request fails meanwhile.
    Rotate {
        /// The application.
        id: ApplicationId,
        /// The new public key (PEM) of a unified application.
        #[arg(long, value_name = "FILE")]
        public_key: Option<PathBuf>,
        /// The keys before stay good for so long: 0s, 10m, 24h.
        #[arg(long, default_value = "24h")]
        overlap: DurationValue,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Say where an application's callbacks go, or that it has none.
    #[command(group = clap::ArgGroup::new("where").required(true).args(["url", "none"]))]
    Callback {
        /// The application.
        id: ApplicationId,
        /// The address.
        #[arg(long)]
        url: Option<String>,
        /// No callbacks any more.
        #[arg(long)]
        none: bool,
    },
}

fn read(path: &std::path::Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("{} cannot be read", path.display()))
}

pub(super) async fn run(settings: &Settings, command: AppsCommand) -> Result<()> {
    let catalog = crate::app::services::catalog(settings).await?;
    let now = Wallclock::now();
    match command {
        AppsCommand::Add { unified, id, public_key, secret, secret_file, name, callback_url, json, .. } => {
            let key = match (unified, public_key, secret_file) {
                (true, Some(path), _) => NewKey::Public(read(&path)?),
                (true, None, _) => bail!("a unified application needs --public-key FILE"),
                (false, _, Some(path)) => NewKey::Secret(Some(read(&path)?.trim().to_owned().into())),
                (false, _, None) => NewKey::Secret(secret.map(Into::into)),
            };
            let new = NewApplication { id, name, key, callback_url };
            let added = applications::add(catalog.as_ref(), settings, new, now).await?;
            let secret = added.new_secret.as_ref().map(ExposeSecret::expose_secret);
            let callbacks = added.row.callback_secret.as_ref().map(ExposeSecret::expose_secret);
            if json {
                return print_json(&serde_json::json!({
                    "applicationId": added.row.application, "kind": added.row.kind, "secret": secret,
                    "callbackSecret": callbacks,
                }));
            }
            print_line(&format!("{} application {}", added.row.kind.as_str(), added.row.application));
            if let Some(secret) = secret {
                print_line(&format!("secret           {secret}"));
            }
            if let Some(secret) = callbacks {
                print_line(&format!("callback secret  {secret}"));
            }
        }
        AppsCommand::List { json } => {
            let all = catalog.applications().await?;
            if json {
                let shown: Vec<_> = all.iter().map(|row| applications::shown(row, now)).collect();
                return print_json(&shown);
            }
            for row in &all {
                let good = row.keys.iter().filter(|key| key.is_good(now)).count();
                let callback = row.callback_url.as_deref().unwrap_or("-");
                print_line(&format!(
                    "{}  {:<7}  {good} keys  {callback}  {}",
                    row.application,
                    row.kind.as_str(),
                    row.name
                ));
            }
        }
        AppsCommand::Rotate { id, public_key, overlap, json } => {
            let key = public_key.as_deref().map(read).transpose()?;
            let overlap: Duration = overlap.0;
            let rotated = applications::rotate(catalog.as_ref(), &id, key, overlap, now).await?;
            let secret = rotated.new_secret.as_ref().map(ExposeSecret::expose_secret);
            if json {
                return print_json(&serde_json::json!({ "applicationId": id, "secret": secret }));
            }
            match secret {
                Some(secret) => print_line(&format!("new secret  {secret}")),
                None => print_line("the new key is good from now on"),
            }
        }
        AppsCommand::Callback { id, url, .. } => {
            let row = applications::set_callback(catalog.as_ref(), settings, &id, url, now).await?;
            match (&row.callback_url, &row.callback_secret) {
                (Some(url), Some(secret)) => {
                    print_line(&format!("callbacks go to {url}\ncallback secret  {}", secret.expose_secret()));
                }
                _ => print_line("there are no callbacks any more"),
            }
        }
    }
    Ok(())
}
