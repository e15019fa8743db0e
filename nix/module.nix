# services.revq. The units are the package's. This module adds only the host's own choices: the instances, the broker,
# and the settings. It works with and without flakes.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib)
    mkDefault
    mkEnableOption
    mkIf
    mkMerge
    mkOption
    types
    ;

  cfg = config.services.revq;

  # What `rabbitmq.enable` makes: URLs with secrets, read by root and systemd alone.
  secrets = "/var/lib/revq";

  ### Settings

  noun =
    description: type:
    type
    // {
      inherit description;
      descriptionClass = "noun";
    };
  duration = noun "duration such as 500ms, 10s or 1m30s" (
    types.strMatching "([0-9]+([.][0-9]+)?(ns|us|ms|s|m|h))+"
  );
  inherit (types.ints) positive;

  # The settings as the programs declare them: `revq settings --format json` prints the file. Addresses and secrets are
  # left out; there are options of their own for them.
  declared = lib.filter (s: !(s.wiring or false)) (lib.importJSON ../cmd/revq/settings.json);

  typeOf =
    s:
    {
      int =
        if s ? max then
          types.ints.between s.min s.max
        else if s.min == 1 then
          positive
        else
          types.addCheck types.int (n: n >= s.min)
          // {
            description = "integer of at least ${toString s.min}";
            descriptionClass = "noun";
          };
      duration = duration;
      text = noun (if s.default == "" then "text" else "text such as ${s.default}") (types.strMatching (s.pattern or ".*"));
      choice = types.enum s.choices;
      list = types.listOf (if s ? pattern then types.strMatching s.pattern else types.str);
      bool = types.bool;
    }
    .${s.kind};

  # Those that all daemons have are options of `settings`, the others of their role.
  daemons = [
    "api"
    "socket"
    "worker"
  ];
  isCommon =
    name:
    lib.all (
      role: lib.any (s: s.role == role && s.name == name) declared
    ) daemons;
  flagsOf =
    role: common:
    lib.listToAttrs (
      map (s: lib.nameValuePair s.name s) (
        lib.filter (s: s.role == role && (role != "setup" -> isCommon s.name == common)) declared
      )
    );
  flags = lib.genAttrs (daemons ++ [ "setup" ]) (role: flagsOf role false) // {
    common = flagsOf "api" true;
  };

  settings =
    who: flags:
    mkOption {
      description = ''
        Settings of ${who}, under the names of the flags. [SETTINGS.md](../cmd/revq/SETTINGS.md) lists them with their
        defaults and bounds. A setting that is not given has the program's default.
      '';
      default = { };
      visible = "shallow";
      type = types.submodule {
        options = lib.mapAttrs (
          _: s:
          mkOption {
            type = types.nullOr (typeOf s);
            default = null;
            defaultText = lib.literalMD "the program's own: `${s.default}`";
            inherit (s) description;
          }
        ) flags;
      };
    };

  # The variables that stand for flags: --max-text is REVQ_MAX_TEXT.
  environment =
    settings:
    lib.mapAttrsToList (
      name: value:
      let
        variable = "REVQ_" + lib.toUpper (lib.replaceString "-" "_" name);
        text =
          if lib.isList value then
            lib.concatStringsSep "," value
          else if lib.isBool value then
            lib.boolToString value
          else
            toString value;
      in
      # As systemd reads it: quoted, and % is a specifier.
      lib.replaceString "%" "%%" (builtins.toJSON "${variable}=${text}")
    ) (lib.filterAttrs (_: value: value != null) settings);

  ### The roles, as the units have them

  site = types.ints.between 1 9;
  port = site: 8080 + site;

  amqpUrlFile =
    more:
    mkOption {
      type = types.nullOr types.path;
      default = null;
      example = "/run/secrets/revq-amqp-url";
      description = ''
        File on the host with the broker's URL, `amqp://USER:PASSWORD@HOST:PORT/VHOST` (or `amqps://`). Several nodes of
        a cluster are separated by commas. systemd reads the file when a service starts and passes it only to that
        service, so only root needs to be able to read it. ${more}
      '';
    };

  ownUrlFile =
    role: amqpUrlFile "It is for ${role}; without it, {option}`services.revq.amqpUrlFile` is used.";

  urlFileOf =
    role:
    if cfg.rabbitmq.enable then
      "${secrets}/${role}.amqp-url"
    else if cfg.${role}.amqpUrlFile != null then
      cfg.${role}.amqpUrlFile
    else
      cfg.amqpUrlFile;

  # The roles that this host has, and the unit of each.
  roles =
    lib.optionalAttrs (cfg.api.sites != [ ]) { api = "revq-api@"; }
    // lib.optionalAttrs (cfg.socket.sites != [ ]) { socket = "revq-socket@"; }
    // lib.optionalAttrs (cfg.worker.instances > 0 || handled != { }) { worker = "revq-worker@"; }
    // lib.optionalAttrs cfg.setup.enable { setup = "revq-setup"; };

  instances =
    map (i: "revq-api@${toString i}.socket") cfg.api.sites
    ++ map (i: "revq-socket@${toString i}.socket") cfg.socket.sites
    ++ map (i: "revq-worker@${toString i}.service") (lib.range 1 cfg.worker.instances)
    ++ lib.concatLists (lib.mapAttrsToList workersOf handled)
    ++ map (name: "revq-handler-${name}.socket") (lib.attrNames handled)
    ++ lib.optionals cfg.setup.enable (
      map (name: "revq-setup@${name}.service") (lib.attrNames cfg.queues)
    )
    ++ lib.optional cfg.metrics.enable "revq-metrics.socket";

  hasTLS = cfg.tls.certFile != null && cfg.tls.keyFile != null;

  ### What is added to the units

  # Drop-ins under a name of their own. NixOS calls all of its drop-ins overrides.conf, and one of an instance would hide
  # that of the template; like this, `systemd.services."revq-worker@2"` is free for what only that worker has.
  dropIn =
    unit: sections:
    lib.nameValuePair "lib/systemd/system/${unit}.d/20-nixos.conf" (
      pkgs.writeText "20-nixos.conf" (lib.generators.toINI { listsAsDuplicateKeys = true; } sections)
    );

  service =
    role: unit:
    dropIn "${unit}.service" {
      Unit = lib.optionalAttrs cfg.rabbitmq.enable { After = users; };
      Service = {
        Environment = environment (
          (lib.optionalAttrs (role != "setup") cfg.settings) // cfg.${role}.settings
        );
        LoadCredential = [
          "amqp-url:${urlFileOf role}"
        ]
        ++ lib.optionals (hasTLS && (role == "api" || role == "socket")) [
          "tls-cert:${cfg.tls.certFile}"
          "tls-key:${cfg.tls.keyFile}"
        ]
        ++ lib.optional (
          cfg.tokensFile != null && (role == "api" || role == "socket")
        ) "tokens:${cfg.tokensFile}";
        IPAddressAllow = cfg.brokerAddresses ++ lib.optionals cfg.rabbitmq.enable (lib.attrValues cluster.peers);
        # An upgrade restarts it at once, rather than to stop it first: connections wait in the socket meanwhile.
        X-StopIfChanged = "false";
      };
    };

  socket =
    unit:
    dropIn "${unit}.socket" {
      Socket.ListenStream = [ "" ] ++ map (address: "${address}:808%i") cfg.listenAddresses;
    };

  ### One's own queues

  # Those whose tasks this host handles.
  handled = lib.filterAttrs (_: queue: queue.instances > 0) cfg.queues;

  # No queue has a colon in its name.
  workersOf =
    name: queue:
    map (i: "revq-worker@${name}${lib.optionalString (i > 1) ":${toString i}"}.service") (
      lib.range 1 queue.instances
    );

  # A word of ExecStart=, as systemd reads it.
  word = text: lib.replaceStrings [ "%" "$" ] [ "%%" "$$" ] (builtins.toJSON "${text}");

  # The group of the workers that may connect to handlers.
  handlerGroup = "revq-handler";

  unitFile =
    name: sections:
    lib.nameValuePair "lib/systemd/system/${name}" (
      pkgs.writeText (lib.strings.sanitizeDerivationName (baseNameOf name)) (
        lib.generators.toINI { listsAsDuplicateKeys = true; } sections
      )
    );

  handlerUnits =
    name: queue:
    let
      socketPath = "/run/revq-handler-${name}.sock";
      mode = lib.optional (queue.handler.mode == "persistent") "--handler persistent";
      needs = [
        "revq-handler-${name}.socket"
      ]
      ++ lib.optional cfg.setup.enable "revq-setup@${name}.service";
      handler = [
        (unitFile "revq-handler-${name}@.service" {
          Unit = {
            Description = "revq handler of the queue ${name}, one connection";
            # So that it is stopped after them.
            Before = workersOf name queue;
          };
          Service = {
            ExecStart = lib.concatStringsSep " " (
              [ "${cfg.package}/bin/revq handle" ] ++ mode ++ [ "--" ] ++ map word queue.handler.exec
            );
            # A user's name has 31 characters at most.
            User =
              "revq-handler-"
              + (
                if lib.stringLength name <= 18 then
                  name
                else
                  lib.substring 0 18 (builtins.hashString "sha256" name)
              );
            Environment = [
              "REVQ_QUEUE=${name}"
              "PATH=${
                lib.makeBinPath (
                  queue.path
                  ++ [
                    pkgs.coreutils
                    pkgs.findutils
                    pkgs.gnugrep
                    pkgs.gnused
                  ]
                )
              }"
            ];
            # A service for a connection cannot be started by hand. The restart of the worker brings new ones.
            X-RestartIfChanged = "false";
          };
        })
      ]
      # After the sandbox, which is a drop-in, too.
      ++ lib.optional (queue.serviceConfig != { }) (
        unitFile "revq-handler-${name}@.service.d/30-nixos.conf" { Service = queue.serviceConfig; }
      );
    in
    handler
    ++ [
      (unitFile "revq-handler-${name}.socket" {
        Unit.Description = "revq handler of the queue ${name}";
        Socket.ListenStream = socketPath;
      })
      # Each worker may have as many connections again that are about to end.
      (unitFile "revq-handler-${name}.socket.d/30-nixos.conf" {
        Socket.MaxConnections = queue.instances * 2 * lib.max 32 (concurrencyOf queue);
      })
    ]
    ++ map (
      worker:
      unitFile "${worker}.d/30-queue.conf" {
        Unit = {
          Wants = needs;
          After = needs;
          X-Restart-Triggers = map (unit: "${unit.value}") handler;
        };
        Service = {
          ExecStart = [
            ""
            "${cfg.package}/bin/revq-worker --queue ${name} --handler unix:${socketPath}"
          ];
          SupplementaryGroups = handlerGroup;
          Environment = environment (
            queue.settings
            // lib.optionalAttrs (queue.concurrency != null) { inherit (queue) concurrency; }
            // lib.optionalAttrs (queue.timeout != null) { task-timeout = queue.timeout; }
          );
        };
      }
    ) (workersOf name queue);

  concurrencyOf =
    queue:
    lib.findFirst (n: n != null) 0 [
      queue.concurrency
      queue.settings.concurrency
      cfg.worker.settings.concurrency
    ];

  queueUnits =
    lib.concatLists (lib.mapAttrsToList handlerUnits handled)
    ++ lib.optionals cfg.setup.enable (
      lib.mapAttrsToList (
        name: queue:
        unitFile "revq-setup@${name}.service.d/30-queue.conf" {
          Service.Environment = environment queue.setup.settings;
        }
      ) cfg.queues
    );

  hostUnits = pkgs.linkFarm "revq-host-units" (
    lib.mapAttrs' service roles
    // lib.listToAttrs (
      queueUnits
      ++ lib.optional (cfg.setup.enable && cfg.queues != { }) (service "setup" "revq-setup@")
    )
    // lib.optionalAttrs cfg.metrics.enable (
      lib.listToAttrs [
        (dropIn "revq-metrics.socket" {
          Socket.ListenStream = [ "" ] ++ cfg.metrics.listenAddresses;
        })
      ]
    )
    // lib.optionalAttrs (cfg.listenAddresses != [ ]) (
      lib.listToAttrs (
        map socket [
          "revq-api@"
          "revq-socket@"
        ]
      )
    )
  );

  ### The broker on this host

  # Not called revq-…: units of that name have revq's sandbox.
  users = "rabbitmq-revq.service";
  rabbitmq = config.services.rabbitmq;
  rabbitmqEnvironment = config.systemd.services.rabbitmq.environment;

  administration = {
    path = [ rabbitmq.package ];
    environment = {
      HOME = rabbitmq.dataDir; # Erlang's cookie
      inherit (rabbitmqEnvironment) RABBITMQ_NODENAME;
    };
    serviceConfig = {
      Type = "oneshot";
      StateDirectory = "revq";
      StateDirectoryMode = "0700";
      UMask = "0077";
      TimeoutStartSec = 180;
      CapabilityBoundingSet = [
        "CAP_DAC_READ_SEARCH" # Erlang's cookie
        "CAP_CHOWN" # install gives the file with the users to RabbitMQ
      ];
      NoNewPrivileges = true;
      ProtectSystem = "strict";
      ProtectHome = true;
      PrivateTmp = true;
      PrivateDevices = true;
      ProtectKernelTunables = true;
      ProtectKernelModules = true;
      ProtectKernelLogs = true;
      ProtectControlGroups = true;
      ProtectClock = true;
      RestrictNamespaces = true;
      RestrictRealtime = true;
      RestrictSUIDSGID = true;
      LockPersonality = true;
      SystemCallArchitectures = "native";
      IPAddressDeny = "any";
      IPAddressAllow = [ "localhost" ] ++ lib.optional isCluster own;
    };
  };

  # The nodes of a cluster: each has a name of its own for its host, since NixOS has the host's name mean 127.0.0.2 there.
  inherit (cfg.rabbitmq) cluster;
  isCluster = cluster.peers != { };
  own = cluster.peers.${cluster.name} or "127.0.0.1";
  nodeHost = name: "revq-${name}";
  clusterPorts = [
    4369 # epmd
    5672
    25672 # between nodes
  ];

  makeUsers =
    "${cfg.package}/libexec/revq/install broker"
    + (
      if isCluster then
        " --host ${lib.concatStringsSep "," (lib.attrValues cluster.peers)} --seed ${rabbitmq.dataDir}/.erlang.cookie"
      else
        " --host localhost" # also where the host was in a cluster before
    )
    + " --to";
in
{
  options.services.revq = {
    enable = mkEnableOption "revq, a task queue over RabbitMQ whose results are pushed to listeners";

    package = mkOption {
      type = types.package;
      default = pkgs.callPackage ./package.nix { };
      defaultText = lib.literalExpression "pkgs.callPackage ./package.nix { }";
      description = "The revq package: programs and units.";
    };

    amqpUrlFile = amqpUrlFile "For a broker elsewhere; with {option}`services.revq.rabbitmq.enable` it is not needed.";

    brokerAddresses = mkOption {
      type = types.listOf types.str;
      default = [ ];
      example = [
        "192.0.2.17"
        "2001:db8::/64"
      ];
      description = ''
        IP addresses or networks that revq's daemons may talk to, besides this host's own (systemd's `IPAddressAllow`).
        These are the nodes of a broker elsewhere, and the DNS server if the URL has a host name that is not in
        {file}`/etc/hosts`. `any` allows all addresses. Clients do not need this: they connect through the socket units.
      '';
    };

    listenAddresses = mkOption {
      type = types.listOf types.str;
      default = [ ];
      example = [
        "127.0.0.1"
        "[::1]"
      ];
      description = ''
        Addresses that the sites listen on; an empty list means all. A change takes effect with
        `systemctl restart 'revq-*.socket'`, which ends the connections: NixOS does not restart sockets by itself.
      '';
    };

    openFirewall = mkOption {
      type = types.bool;
      default = false;
      description = "Whether to open the ports of all sites in the firewall. Without `tokensFile`, revq does not authenticate clients.";
    };

    tls = {
      certFile = mkOption {
        type = types.nullOr types.path;
        default = null;
        example = "/var/lib/acme/example.org/fullchain.pem";
        description = ''
          File on the host with the certificate chain in PEM, the server's certificate first. With it, the API and the
          socket server accept only TLS, at all sites. systemd reads it when a service starts: restart the services when
          the certificate was renewed, for example with
          `security.acme.certs.NAME.postRun = "systemctl try-restart 'revq-api@*' 'revq-socket@*'"`.
        '';
      };
      keyFile = mkOption {
        type = types.nullOr types.path;
        default = null;
        example = "/var/lib/acme/example.org/key.pem";
        description = "File on the host with the private key, in PEM. Only root needs to be able to read it.";
      };
    };

    tokensFile = mkOption {
      type = types.nullOr types.path;
      default = null;
      example = "/var/lib/revq/tokens";
      description = ''
        File on the host with the hashes of tokens, as `revq token new` prints them. With it, the API and the socket server
        let in only those who have a token. systemd reads it when a service starts: after a change, run
        `systemctl try-restart 'revq-api@*' 'revq-socket@*'`.
      '';
    };

    settings = settings "all daemons" flags.common;

    api = {
      sites = mkOption {
        type = types.listOf site;
        default = [
          1
          2
        ];
        description = "Sites of the API: site `i` is port 808`i`. The API and the socket server cannot have the same site.";
      };
      amqpUrlFile = ownUrlFile "the API";
      settings = settings "`revq-api`" flags.api;
    };

    socket = {
      sites = mkOption {
        type = types.listOf site;
        default = [ 3 ];
        description = "Sites of the socket server: site `i` is port 808`i`.";
      };
      amqpUrlFile = ownUrlFile "the socket server";
      settings = settings "`revq-socket`" flags.socket;
    };

    worker = {
      instances = mkOption {
        type = types.ints.between 0 99;
        default = 2;
        description = "Number of workers: `revq-worker@1` and so on.";
      };
      amqpUrlFile = ownUrlFile "the workers";
      settings = settings "`revq-worker`" flags.worker;
    };

    queues = mkOption {
      default = { };
      example = lib.literalExpression ''
        {
          thumbnail = {
            handler.exec = [ ./thumbnail "200x200" ];
            path = [ pkgs.imagemagick ];
            concurrency = 4;
          };
        }
      '';
      description = ''
        Queues of tasks for programs of your own. Clients post to `/queue/NAME`. A name is a lower-case letter, followed by
        up to 62 lower-case letters, digits, `_` and `-`.
      '';
      type = types.attrsOf (
        types.submodule {
          options = {
            handler = {
              exec = mkOption {
                type = types.listOf (
                  types.oneOf [
                    types.path
                    types.package
                    types.str
                  ]
                );
                default = [ ];
                example = [
                  "/run/current-system/sw/bin/tr"
                  "a-z"
                  "A-Z"
                ];
                description = "The program that handles the tasks, and its arguments. No shell is involved.";
              };
              mode = mkOption {
                type = types.enum [
                  "filter"
                  "persistent"
                ];
                default = "filter";
                description = ''
                  A `filter` is started for each task: it reads the text and writes the result. A `persistent` program speaks
                  the [protocol](../internal/handler/README.md) and handles one task after the other.
                '';
              };
            };
            path = mkOption {
              type = types.listOf types.package;
              default = [ ];
              example = lib.literalExpression "[ pkgs.imagemagick ]";
              description = "Packages whose programs the handler finds, besides coreutils, findutils, grep and sed.";
            };
            serviceConfig = mkOption {
              type = types.attrsOf types.anything;
              default = { };
              example = {
                MemoryMax = "2G";
                PrivateNetwork = false;
                IPAddressAllow = "any";
              };
              description = ''
                What the handler's service has besides the sandbox, or instead of a part of it, as in
                {option}`systemd.services.<name>.serviceConfig`. The handler has a user of its own, no network, and 512 MiB for
                each task that it handles at once. [systemd/README.md](../systemd/README.md#your-own-queue) lists what to grant.
              '';
            };
            instances = mkOption {
              type = types.ints.between 0 99;
              default = 1;
              description = "Number of workers for this queue. With 0, only workers on other hosts handle its tasks.";
            };
            concurrency = mkOption {
              type = types.nullOr (typeOf flags.worker.concurrency);
              default = null;
              description = ''
                Number of tasks that a worker handles at once, and of handlers that run. By default that of
                {option}`services.revq.worker.settings`, or the program's own.
              '';
            };
            timeout = mkOption {
              type = types.nullOr (typeOf flags.worker.task-timeout);
              default = null;
              example = "30s";
              description = "Time that an attempt may take (`--task-timeout`).";
            };
            settings = settings "the workers of this queue" (
              removeAttrs flags.worker [
                "queue"
                "exec"
                "handler"
              ]
            );
            setup.settings = settings "the queue at the broker (`revq setup --queue`), such as `max-tasks`" (
              removeAttrs flags.setup [ "queue" ]
            );
          };
        }
      );
    };

    metrics = {
      enable = mkEnableOption ''
        one address at which Prometheus finds the metrics of all of revq's daemons on this host
        ([internal/admin/README.md](../internal/admin/README.md)). Everyone who reaches it may read them'';
      listenAddresses = mkOption {
        type = types.nonEmptyListOf types.str;
        default = [ "127.0.0.1:8090" ];
        example = [ "192.0.2.17:8090" ];
        description = ''
          Addresses, each with a port. The firewall is not opened. A change takes effect with
          `systemctl restart revq-metrics.socket`.
        '';
      };
      prometheus.enable = mkEnableOption ''
        the scraping of these metrics, and revq's alerts, in the Prometheus of this host ({option}`services.prometheus`).
        For one on another host, the alerts are in {file}`share/revq/alerts.yml` of the package'';
      grafana.enable = mkEnableOption ''
        revq's dashboard in the Grafana of this host ({option}`services.grafana`). It is
        {file}`share/revq/dashboards/revq.json` of the package'';
    };

    setup = {
      enable = mkOption {
        type = types.bool;
        default = cfg.rabbitmq.enable || cfg.setup.amqpUrlFile != null;
        defaultText = lib.literalMD "`true` with {option}`services.revq.rabbitmq.enable`, or if {option}`services.revq.setup.amqpUrlFile` is set";
        description = ''
          Whether this host declares the exchanges and the queues at the broker each time it starts (`revq setup`). Existing
          ones stay as they are. If other sizes are set, `revq-setup.service` fails and says how to change them.
        '';
      };
      amqpUrlFile = amqpUrlFile "The user must have permission to configure, write and read `^revq`.";
      settings = settings "`revq setup`" flags.setup;
    };

    rabbitmq = {
      enable = mkOption {
        type = types.bool;
        default = false;
        description = ''
          Whether to run the broker on this host: RabbitMQ on the loopback interface, with the virtual host `revq`, a user
          with only the needed permissions for each role, and no user `guest`. The secrets are generated on the host at the
          first start, in {file}`${secrets}`; `systemctl start rabbitmq-revq-rotate` generates new ones without an
          interruption.

          The node is called `rabbit@localhost`, whatever the host is called. If a RabbitMQ has run on this host before, as
          `rabbit@''${networking.hostName}`, set {option}`systemd.services.rabbitmq.environment.RABBITMQ_NODENAME` to that
          name to keep its data.
        '';
      };

      listenAddress = mkOption {
        type = types.str;
        default = "127.0.0.1";
        example = "192.0.2.17";
        description = ''
          Address that RabbitMQ listens on (port 5672) besides `127.0.0.1`, for revq on other hosts. AMQP is not encrypted
          by default: use a private network, or configure TLS with {option}`services.rabbitmq.configItems`. The firewall is
          not opened.
        '';
      };

      memoryLimit = mkOption {
        type = types.either (types.numbers.between 0 1) (
          noun "size such as 512MiB or 2GiB" (types.strMatching "[0-9]+(kB|MB|GB|KiB|MiB|GiB)")
        );
        default = 0.4;
        example = "2GiB";
        description = "Memory, absolute or as a part of the host's, above which RabbitMQ takes no more messages (clients get 503).";
      };

      diskFreeLimit = mkOption {
        type = noun "size such as 512MiB or 2GiB" (types.strMatching "[0-9]+(kB|MB|GB|KiB|MiB|GiB)");
        default = "2GiB";
        description = "Free space on RabbitMQ's disk below which it takes no more messages (clients get 503).";
      };

      cluster = {
        peers = mkOption {
          type = types.attrsOf (noun "IPv4 address" (types.strMatching "[0-9]{1,3}([.][0-9]{1,3}){3}"));
          default = { };
          example = {
            one = "192.0.2.1";
            two = "192.0.2.2";
            three = "192.0.2.3";
          };
          description = ''
            The hosts whose RabbitMQs are one cluster, this one included, with their addresses on a private network: three,
            or one alone without a cluster. They must be the same on each of them. The nodes are called `rabbit@revq-NAME`,
            and {file}`/etc/hosts` has these names. A RabbitMQ that has run on this host as `rabbit@localhost` does not
            join: its data is not used.
          '';
        };
        name = mkOption {
          type = types.str;
          default = config.networking.hostName;
          defaultText = lib.literalExpression "config.networking.hostName";
          description = "The name of this host in `peers`.";
        };
        cookieFile = mkOption {
          type = types.nullOr types.path;
          default = null;
          example = "/run/secrets/erlang-cookie";
          description = ''
            File on the host with the secret that the nodes have in common (Erlang's cookie), at least 32 random letters
            and digits: whoever has it can do everything at the broker. The passwords of revq's users are made of it, too,
            so that they are the same on all hosts. systemd reads the file when RabbitMQ starts; only root needs to be able to.
          '';
        };
        interface = mkOption {
          type = types.nullOr types.str;
          default = null;
          example = "eth1";
          description = ''
            Interface of the private network, on which the ports 4369, 5672 and 25672 are opened in the firewall. Without it
            none is. What the nodes say to each other is not encrypted.
          '';
        };
      };
    };
  };

  config = mkIf cfg.enable (mkMerge [
    {
      assertions =
        let
          sites = cfg.api.sites ++ cfg.socket.sites;
          twice = lib.unique (lib.filter (i: lib.count (j: i == j) sites > 1) sites);
          urlFiles = lib.filterAttrs (_: file: file != null) {
            "amqpUrlFile" = cfg.amqpUrlFile;
            "api.amqpUrlFile" = cfg.api.amqpUrlFile;
            "socket.amqpUrlFile" = cfg.socket.amqpUrlFile;
            "worker.amqpUrlFile" = cfg.worker.amqpUrlFile;
            "setup.amqpUrlFile" = cfg.setup.amqpUrlFile;
          };
        in
        map (i: {
          assertion = false;
          message = "services.revq: site ${toString i} (port ${toString (port i)}) is there more than once: each digit belongs to one entry of api.sites or socket.sites.";
        }) twice
        ++ lib.mapAttrsToList (option: file: {
          assertion = lib.isString file && !lib.hasPrefix builtins.storeDir file;
          message = "services.revq.${option} would put the broker's password into the Nix store, which everyone can read: give the place where the file is on the host, in quotes, as \"/run/secrets/revq-amqp-url\".";
        }) urlFiles
        ++ lib.concatLists (
          lib.mapAttrsToList (name: queue: [
            {
              assertion = builtins.match "[a-z][a-z0-9_-]{0,62}" name != null;
              message = "services.revq.queues.${name}: a name is a lower-case letter, followed by up to 62 lower-case letters, digits, _ and -.";
            }
            {
              assertion = name != "reverse_text";
              message = "services.revq.queues.reverse_text is built in: choose another name, or set worker.settings.exec for a program of your own.";
            }
            {
              assertion = queue.instances == 0 || queue.handler.exec != [ ];
              message = "services.revq.queues.${name} has no program: set handler.exec, or instances = 0 if only other hosts handle its tasks.";
            }
          ]) cfg.queues
        )
        ++ [
          {
            assertion = (cfg.tls.certFile == null) == (cfg.tls.keyFile == null);
            message = "services.revq.tls needs both certFile and keyFile, or neither of them.";
          }
          {
            assertion =
              cfg.tls.keyFile == null
              || lib.isString cfg.tls.keyFile && !lib.hasPrefix builtins.storeDir cfg.tls.keyFile;
            message = "services.revq.tls.keyFile would put the private key into the Nix store, which everyone can read: give the place where the file is on the host, in quotes.";
          }
          {
            assertion =
              cfg.tokensFile == null || lib.isString cfg.tokensFile && !lib.hasPrefix builtins.storeDir cfg.tokensFile;
            message = "services.revq.tokensFile would put the file into the Nix store, which everyone can read: give the place where the file is on the host, in quotes.";
          }
          {
            assertion = cfg.metrics.prometheus.enable -> cfg.metrics.enable && config.services.prometheus.enable;
            message = "services.revq.metrics.prometheus.enable needs services.revq.metrics.enable and services.prometheus.enable on this host.";
          }
          {
            assertion = cfg.metrics.grafana.enable -> config.services.grafana.enable;
            message = "services.revq.metrics.grafana.enable needs services.grafana.enable on this host.";
          }
          {
            assertion = isCluster -> cluster.peers ? ${cluster.name};
            message = "services.revq.rabbitmq.cluster.peers does not have this host, ${cluster.name}: add it, or set rabbitmq.cluster.name.";
          }
          {
            assertion =
              isCluster
              -> lib.isString cluster.cookieFile && !lib.hasPrefix builtins.storeDir cluster.cookieFile;
            message = "services.revq.rabbitmq.cluster needs a cookieFile that is not in the Nix store, which everyone can read: give the place where the file is on the host, in quotes.";
          }
          {
            assertion = isCluster -> cfg.rabbitmq.enable;
            message = "services.revq.rabbitmq.cluster is for RabbitMQ on this host: set rabbitmq.enable, too.";
          }
          {
            assertion = cfg.rabbitmq.enable -> urlFiles == { };
            message = "services.revq: rabbitmq.enable is for a broker on this host, and ${lib.concatStringsSep ", " (lib.attrNames urlFiles)} for one elsewhere: leave one of them out.";
          }
          {
            assertion = cfg.rabbitmq.enable || lib.all (role: urlFileOf role != null) (lib.attrNames roles);
            message = "services.revq does not know its broker: set rabbitmq.enable = true for one on this host, or amqpUrlFile (or that of ${lib.concatStringsSep ", " (lib.attrNames roles)}) to a file with the URL of one elsewhere.";
          }
          {
            assertion = !cfg.rabbitmq.enable && urlFiles != { } -> cfg.brokerAddresses != [ ];
            message = "services.revq.brokerAddresses must name the addresses of the broker, since the daemons may talk to no others: as [ \"192.0.2.17\" ], [ \"localhost\" ] for one on this host, or [ \"any\" ].";
          }
        ];

      environment.systemPackages = [ cfg.package ];

      # Its members may look at the daemons.
      users.groups = {
        revq-admin = { };
      }
      // lib.optionalAttrs (handled != { }) { ${handlerGroup} = { }; };

      systemd.packages = [
        cfg.package
        hostUnits
      ];

      systemd.targets.revq = {
        overrideStrategy = "asDropin";
        wantedBy = [ "multi-user.target" ];
        wants = instances ++ lib.optional cfg.setup.enable "revq-setup.service";
      };

      # Templates of instances that are no longer wanted still exist, so that NixOS would let them run on.
      systemd.services.stop-former-revq = {
        description = "Stop of revq's instances that are no longer configured";
        wantedBy = [ "revq.target" ];
        after = [ "revq.target" ];
        enableDefaultPath = false;
        serviceConfig = {
          Type = "oneshot";
          RemainAfterExit = true;
        };
        path = [ config.systemd.package ];
        script = ''
          wanted=' ${lib.concatStringsSep " " instances} '
          systemctl list-units --plain --no-legend 'revq-api@*.socket' 'revq-socket@*.socket' 'revq-worker@*.service' \
            'revq-setup@*.service' 'revq-handler-*.socket' 'revq-metrics.socket' |
            while read -r unit _; do
              case "$wanted/$unit" in
              *" $unit "*/*) ;;
              */revq-handler-*) systemctl stop "$unit" "''${unit%.*}@*.service" ;;
              *) systemctl stop "$unit" "''${unit%.*}.service" ;;
              esac
            done
        '';
      };

      networking.firewall.allowedTCPPorts = mkIf cfg.openFirewall (
        map port (cfg.api.sites ++ cfg.socket.sites)
      );
    }

    (mkIf cfg.metrics.prometheus.enable {
      services.prometheus = {
        ruleFiles = [ "${cfg.package}/share/revq/alerts.yml" ];
        scrapeConfigs = [
          {
            job_name = "revq";
            static_configs = [ { targets = [ (lib.head cfg.metrics.listenAddresses) ]; } ];
          }
        ];
      };
    })

    (mkIf cfg.metrics.grafana.enable {
      services.grafana.provision.dashboards.settings.providers = [
        {
          name = "revq";
          options.path = "${cfg.package}/share/revq/dashboards";
        }
      ];
    })

    (mkIf (cfg.rabbitmq.enable && isCluster) {
      services.revq.rabbitmq.listenAddress = mkDefault own;
      services.rabbitmq = {
        configItems = {
          "cluster_formation.peer_discovery_backend" = mkDefault "classic_config";
          # From 4.3 on there is nothing to choose.
          "cluster_partition_handling" = mkDefault "pause_minority";
        }
        // lib.listToAttrs (
          lib.imap1 (
            i: name:
            lib.nameValuePair "cluster_formation.classic_config.nodes.${toString i}" "rabbit@${nodeHost name}"
          ) (lib.attrNames cluster.peers)
        );
        # internal/rabbit/README.md says what these times do.
        config = mkDefault "[{rabbit, [{dead_letter_worker_publisher_confirm_timeout, 2000}]}, {kernel, [{net_ticktime, 2}, {net_setuptime, 0.5}]}, {aten, [{poll_interval, 100}]}, {osiris, [{max_segment_size_chunks, 8192}]}].";
      };
      networking.hosts = lib.mapAttrs' (name: address: lib.nameValuePair address [ (nodeHost name) ]) cluster.peers;
      networking.firewall.interfaces = mkIf (cluster.interface != null) {
        ${cluster.interface}.allowedTCPPorts = clusterPorts;
      };
      services.epmd.listenStream = "0.0.0.0:4369"; # the firewall bounds it
      systemd.services.rabbitmq = {
        after = [ "network-online.target" ]; # for its address
        wants = [ "network-online.target" ];
        environment = {
          RABBITMQ_NODENAME = "rabbit@${nodeHost cluster.name}";
          RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS = "-kernel inet_dist_use_interface {${
            lib.replaceStrings [ "." ] [ "," ] own
          }}";
        };
        serviceConfig.LoadCredential = [ "erlang-cookie:${toString cluster.cookieFile}" ];
        preStart = ''
          install -m 400 "$CREDENTIALS_DIRECTORY/erlang-cookie" ${rabbitmq.dataDir}/.erlang.cookie
        '';
      };
    })

    (mkIf cfg.rabbitmq.enable {
      services.rabbitmq = {
        enable = true;
        listenAddress = mkDefault cfg.rabbitmq.listenAddress;
        # How soon a task that waits is tried again if RabbitMQ does not know where to send it, as when it starts.
        config = mkIf (!isCluster) (mkDefault "[{rabbit, [{dead_letter_worker_publisher_confirm_timeout, 2000}]}].");
        configItems = {
          ${
            if lib.isString cfg.rabbitmq.memoryLimit then
              "vm_memory_high_watermark.absolute"
            else
              "vm_memory_high_watermark.relative"
          } =
            mkDefault (toString cfg.rabbitmq.memoryLimit);
          "disk_free_limit.absolute" = mkDefault cfg.rabbitmq.diskFreeLimit;
          # revq on this host comes by the loopback interface all the same.
          "listeners.tcp.2" = mkIf (
            !lib.elem cfg.rabbitmq.listenAddress [
              "127.0.0.1"
              "0.0.0.0"
              "::"
            ]
          ) (mkDefault "127.0.0.1:${toString rabbitmq.port}");
          # The user guest, whose password everyone knows, can do nothing until it is removed.
          "default_user_tags.administrator" = mkDefault "false";
          "default_permissions.configure" = mkDefault "^$";
          "default_permissions.read" = mkDefault "^$";
          "default_permissions.write" = mkDefault "^$";
        };
      };

      # Erlang's own ports would listen on all interfaces.
      services.epmd.listenStream = mkDefault "127.0.0.1:4369";
      systemd.services.rabbitmq.environment = {
        RABBITMQ_NODENAME = mkDefault "rabbit@localhost";
        RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS = mkDefault "-kernel inet_dist_use_interface {127,0,0,1}";
      };
      environment.variables = { inherit (rabbitmqEnvironment) RABBITMQ_NODENAME; };

      systemd.services.rabbitmq-revq = mkMerge [
        administration
        {
          description = "revq's users at RabbitMQ";
          # This unit does not require RabbitMQ: each retry would start RabbitMQ, too, until systemd's start limit is hit.
          wantedBy = [ "revq.target" ];
          after = [ "rabbitmq.service" ];
          startLimitIntervalSec = 0;
          serviceConfig = {
            RemainAfterExit = true;
            Restart = "on-failure";
            RestartSec = 5;
          };
          script = ''
            ${makeUsers} ${secrets}
            rabbitmqctl -q delete_user guest || test $? = 67 # there is none
          '';
        }
      ];

      # In a cluster the passwords come from the cookie.
      systemd.services.rabbitmq-revq-rotate = mkIf (!isCluster) (mkMerge [
        administration
        {
          description = "New secrets for revq's users at RabbitMQ";
          requires = [ "rabbitmq.service" ];
          after = [
            "rabbitmq.service"
            users
          ];
          path = [ config.systemd.package ];
          # Existing connections stay open; new ones use the new secret.
          script = ''
            rm -rf ${secrets}/new
            ${makeUsers} ${secrets}/new
            mv -f ${secrets}/new/* ${secrets}
            rmdir ${secrets}/new
            systemctl try-restart 'revq-*@*.service'
          '';
        }
      ]);
    })
  ]);
}
