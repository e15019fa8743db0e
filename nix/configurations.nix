# Configurations of services.revq that nix/check evaluates: those that are right, and those that are wrong, each with
# words that its error must hold.
{
  right = {
    default = {
      services.revq.enable = true;
      services.revq.rabbitmq.enable = true;
    };

    # More of everything, and some settings of each kind.
    large =
      { lib, ... }:
      {
        services.revq = {
          enable = true;
          openFirewall = true;
          listenAddresses = [
            "127.0.0.1"
            "[::1]"
          ];
          settings.log-format = "json";
          api.sites = [
            1
            2
            4
          ];
          api.settings.max-text = 1000;
          socket.sites = [
            3
            5
          ];
          socket.settings.allow-origin = [
            "https://a.example"
            "https://b.example:8443"
          ];
          socket.settings.allow-host = [ "queue.example" ];
          worker.instances = 4;
          worker.settings = {
            concurrency = 20;
            pause = "10ms";
          };
          setup.settings.results-max-age = "7D";
          metrics.enable = true;
          queues.shout = {
            handler.exec = [
              ./shout.sh
              "%i $HOME"
            ];
            concurrency = 3;
            timeout = "10s";
            instances = 2;
            settings.drain = true;
            setup.settings.max-tasks = 1000;
            serviceConfig = {
              MemoryMax = "100M";
              Environment = "COLOUR=green";
            };
          };
          rabbitmq = {
            enable = true;
            memoryLimit = "256MiB";
            diskFreeLimit = "50MB";
          };
        };
        # What only one worker has.
        systemd.services."revq-worker@2" = {
          overrideStrategy = "asDropin";
          enableDefaultPath = false;
          environment.REVQ_PAUSE = "0s";
        };
      };

    # The same host with less, and one setting changed.
    smaller =
      { lib, ... }:
      {
        imports = [ (import ./configurations.nix).right.large ];
        services.revq = {
          api.sites = lib.mkForce [
            1
            2
          ];
          queues = lib.mkForce { };
          worker.instances = lib.mkForce 2;
          worker.settings.concurrency = lib.mkForce 5;
        };
      };

    # Only the fronts; the broker and the workers are on another host.
    fronts = {
      services.revq = {
        enable = true;
        worker.instances = 0;
        api.amqpUrlFile = "/run/secrets/revq-api";
        socket.amqpUrlFile = "/run/secrets/revq-socket";
        brokerAddresses = [ "192.0.2.17" ];
      };
    };

    # Queues of one's own: with a long name, persistent, and one whose tasks another host handles.
    queues =
      { pkgs, ... }:
      {
        services.revq = {
          enable = true;
          rabbitmq.enable = true;
          worker.instances = 0;
          queues = {
            thumbnail = {
              handler.exec = [
                ../internal/handler/examples/thumbnail
                "200x200"
              ];
              path = [ pkgs.imagemagick ];
            };
            chart-of-many-numbers = {
              handler.exec = [ "${pkgs.hello}/bin/hello" ];
              handler.mode = "persistent";
              timeout = "1m30s";
            };
            elsewhere.instances = 0;
          };
        };
      };

    # One of three hosts, each with a RabbitMQ.
    clustered = {
      networking.hostName = "one";
      services.revq = {
        enable = true;
        rabbitmq.enable = true;
        rabbitmq.cluster = {
          peers = {
            one = "192.0.2.1";
            two = "192.0.2.2";
            three = "192.0.2.3";
          };
          cookieFile = "/run/secrets/erlang-cookie";
          interface = "eth1";
        };
      };
    };

    clusteredTwo =
      { lib, ... }:
      {
        imports = [ (import ./configurations.nix).right.clustered ];
        networking.hostName = lib.mkForce "two";
      };

    clusteredThree =
      { lib, ... }:
      {
        imports = [ (import ./configurations.nix).right.clustered ];
        networking.hostName = lib.mkForce "three";
      };

    # Everything for operators on one host.
    watched = {
      services.prometheus.enable = true;
      services.grafana.enable = true;
      services.grafana.settings.security.secret_key = "$__file{/run/secrets/grafana}";
      services.revq = {
        enable = true;
        rabbitmq.enable = true;
        metrics.enable = true;
        metrics.prometheus.enable = true;
        metrics.grafana.enable = true;
      };
    };

    # TLS at the sites.
    tls = {
      services.revq = {
        enable = true;
        rabbitmq.enable = true;
        tls.certFile = "/var/lib/acme/example.org/fullchain.pem";
        tls.keyFile = "/var/lib/acme/example.org/key.pem";
      };
    };

    # Only those who have a token are let in.
    tokens = {
      services.revq = {
        enable = true;
        rabbitmq.enable = true;
        openFirewall = true;
        tokensFile = "/var/lib/revq/tokens";
      };
    };

    # One user for everything, as at a hosted broker.
    hosted = {
      services.revq = {
        enable = true;
        amqpUrlFile = "/run/secrets/revq";
        setup.enable = true;
        brokerAddresses = [ "any" ];
      };
    };
  };

  wrong =
    let
      revq = settings: {
        services.revq = {
          enable = true;
          rabbitmq.enable = true;
        }
        // settings;
      };
    in
    {
      "an option that does not exist" = {
        config = revq { workers = 2; };
        error = "services.revq.workers' does not exist";
      };
      "a flag that does not exist" = {
        config = revq { worker.settings.paus = "10ms"; };
        error = "services.revq.worker.settings.paus' does not exist";
      };
      "a wrong type" = {
        config = revq { worker.instances = "two"; };
        error = "not of type .integer between 0 and 99";
      };
      "a duration without a unit" = {
        config = revq { worker.settings.pause = "10"; };
        error = "not of type .null or duration such as 500ms";
      };
      "a number below the program's minimum" = {
        config = revq { setup.settings.delivery-limit = 0; };
        error = "not of type .null or integer between 1 and 1000000";
      };
      "a number below a minimum without a maximum" = {
        config = revq { setup.settings.max-tasks = 1; };
        error = "not of type .null or integer of at least 2";
      };
      "an origin with a path" = {
        config = revq { socket.settings.allow-origin = [ "https://app.example/queue" ]; };
        error = "not of type .string matching the pattern";
      };
      "a host with a port" = {
        config = revq { api.settings.allow-host = [ "queue.example:443" ]; };
        error = "not of type .string matching the pattern";
      };
      "digit 12" = {
        config = revq { api.sites = [ 12 ]; };
        error = "not of type .integer between 1 and 9";
      };
      "sites that collide" = {
        config = revq {
          api.sites = [
            1
            3
          ];
        };
        error = "site 3 (port 8083) is there more than once";
      };
      "a site twice" = {
        config = revq {
          api.sites = [
            1
            1
          ];
        };
        error = "site 1 (port 8081) is there more than once";
      };
      "a secret in the store" = {
        config.services.revq = {
          enable = true;
          amqpUrlFile = "/nix/store/00000000000000000000000000000000-url";
          brokerAddresses = [ "any" ];
        };
        error = "would put the broker's password into the Nix store";
      };
      "a secret that would be copied to the store" = {
        config.services.revq = {
          enable = true;
          api.amqpUrlFile = ./configurations.nix;
          amqpUrlFile = "/run/secrets/revq";
          brokerAddresses = [ "any" ];
        };
        error = "services.revq.api.amqpUrlFile would put";
      };
      "a private key in the store" = {
        config = revq {
          tls.certFile = "/run/cert.pem";
          tls.keyFile = "/nix/store/00000000000000000000000000000000-key.pem";
        };
        error = "would put the private key into the Nix store";
      };
      "a certificate without its key" = {
        config = revq { tls.certFile = "/run/cert.pem"; };
        error = "needs both certFile and keyFile";
      };
      "a cluster without its secret" = {
        config.services.revq = {
          enable = true;
          rabbitmq = {
            enable = true;
            cluster.name = "one";
            cluster.peers.one = "192.0.2.1";
          };
        };
        error = "cluster needs a cookieFile that is not in the Nix store";
      };
      "a cluster of others" = {
        config.services.revq = {
          enable = true;
          rabbitmq = {
            enable = true;
            cluster.name = "four";
            cluster.peers.one = "192.0.2.1";
            cluster.cookieFile = "/run/secrets/erlang-cookie";
          };
        };
        error = "cluster.peers does not have this host, four";
      };
      "tokens in the store" = {
        config = revq { tokensFile = ./configurations.nix; };
        error = "services.revq.tokensFile would put the file into the Nix store";
      };
      "a queue without a program" = {
        config = revq { queues.shout = { }; };
        error = "services.revq.queues.shout has no program";
      };
      "a queue whose name is none" = {
        config = revq { queues.Shout.handler.exec = [ "/bin/true" ]; };
        error = "services.revq.queues.Shout: a name is";
      };
      "the built-in queue" = {
        config = revq { queues.reverse_text.handler.exec = [ "/bin/true" ]; };
        error = "queues.reverse_text is built in";
      };
      "a mode of handlers that does not exist" = {
        config = revq {
          queues.shout.handler = {
            exec = [ "/bin/true" ];
            mode = "fast";
          };
        };
        error = "not of type .one of .filter., .persistent.";
      };
      "a time-out without a unit" = {
        config = revq {
          queues.shout = {
            handler.exec = [ "/bin/true" ];
            timeout = "10";
          };
        };
        error = "not of type .null or duration such as 500ms";
      };
      "another queue for the workers of a queue" = {
        config = revq {
          queues.shout = {
            handler.exec = [ "/bin/true" ];
            settings.queue = "other";
          };
        };
        error = "settings.queue' does not exist";
      };
      "no broker" = {
        config.services.revq.enable = true;
        error = "does not know its broker";
      };
      "two brokers" = {
        config = revq { amqpUrlFile = "/run/secrets/revq"; };
        error = "leave one of them out";
      };
      "a broker that cannot be reached" = {
        config.services.revq = {
          enable = true;
          amqpUrlFile = "/run/secrets/revq";
        };
        error = "services.revq.brokerAddresses must name";
      };
    };
}
