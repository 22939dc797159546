//! The usage text (cli.md 1.3).

/// Printed by `weave help` and after wrong arguments.
pub const TEXT: &str = "Usage:

weave --help | help
      version
      completion    bash | zsh | fish

weave launch        [--password <pass> | --password-file <file>]
                      [--trusted-subnets <cidr>,...] [--no-fastdp]
                      [--nickname <nickname>] [--name <mac>] [--port <port>]
                      [--host <address>] [--no-discovery]
                      [--conn-limit <count>] [--resume] [--mtu auto|<bytes>]
                      [--ipalloc-range <cidr>] [--ipalloc-default-subnet <cidr>]
                      [--ipalloc-init <mode>] [--xdp auto|native|generic|off]
                      [--http-addr <endpoint>] [--status-addr <endpoint>]
                      [--metrics-addr <endpoint>] [--log-level <level>]
                      [--weave-bridge <name>] [--docker-api <endpoint>]
                      [--proxy=<bool>] [-H <endpoint>] [--tls | --tlsverify]
                      [--tlscacert <file>] [--tlscert <file>]
                      [--tlskey <file>] [--no-detect-tls]
                      [--hostname-from-label <label>]
                      [--hostname-match <regexp>]
                      [--hostname-replacement <text>] [--rewrite-inspect]
                      [--no-default-ipalloc] [--no-rewrite-hosts]
                      [--no-multicast-route] [--without-dns]
                      [--data-dir <path>] [--foreground] <peer> ...

weave prime

weave env           [--restore]
      config
      dns-args

weave connect       [--replace] <peer> ...
      forget        <peer> ...

weave run           [<addr> ...] <docker run args> ...

weave attach        [<addr> ...] [--without-dns] [--rewrite-hosts]
                      [--add-host <name>:<address> ...]
                      [--no-multicast-route] <container>
      detach        [<addr> ...] <container>

weave expose        [<addr> ...] [--without-masquerade] [-h <fqdn>]
      hide          [<addr> ...]

weave dns-add       [<ip_address> ...] <container> [-h <fqdn>] |
                      <ip_address> ... -h <fqdn>
      dns-remove    [<ip_address> ...] <container> [-h <fqdn>] |
                      <ip_address> ... -h <fqdn>
      dns-lookup    <unqualified_name>

weave status        [targets | connections | peers | dns | ipam]
                      [--output text|json] [--watch[=<seconds>]]
      report        [-f <format>]
      ps            [<container> ...]
      doctor        [--fix] [--json]

weave stop

weave reset         [--force]
      rmpeer        <peer_id> ...

where <peer>      = <address or name>[:<port>]
      <cidr>      = <address>/<length>
      <addr>      = [ip:]<cidr> | net:<cidr> | net:default
      <endpoint>  = [tcp://][<address>]:<port> | [unix://]/path/to/socket
      <peer_id>   = <nickname> | <internal name>
      <mode>      = consensus[=<count>] | seed=<mac>,... | observer
      <container> = <name or ID> | netns:<name or path> | pid:<number>

'weave <command> --help' explains one command.
";
