# A broker and workers on one machine, the API and the socket server on another.
{
  name = "revq-two-machines";

  nodes = {
    back =
      { nodes, ... }:
      {
        services.revq = {
          enable = true;
          api.sites = [ ];
          socket.sites = [ ];
          worker.settings.pause = "1ms";
          rabbitmq = {
            enable = true;
            listenAddress = nodes.back.networking.primaryIPAddress;
            diskFreeLimit = "50MB";
          };
        };
        # RabbitMQ listens on an address that has to be there.
        systemd.services.rabbitmq.after = [ "network-online.target" ];
        systemd.services.rabbitmq.wants = [ "network-online.target" ];
        networking.firewall.allowedTCPPorts = [ 5672 ];
        virtualisation.memorySize = 2048;
        virtualisation.diskSize = 4096;
      };

    front =
      { nodes, ... }:
      {
        services.revq = {
          enable = true;
          openFirewall = true;
          worker.instances = 0;
          api.amqpUrlFile = "/var/lib/secrets/api.amqp-url";
          socket.amqpUrlFile = "/var/lib/secrets/socket.amqp-url";
          brokerAddresses = [ nodes.back.networking.primaryIPAddress ];
        };
      };

    client =
      { nodes, ... }:
      {
        environment.systemPackages = [ nodes.front.services.revq.package ];
      };
  };

  testScript =
    { nodes, ... }:
    ''
      start_all()
      back.wait_for_unit("revq-worker@2.service")
      front.wait_for_unit("revq.target")
      client.wait_for_unit("multi-user.target")

      with subtest("the front machine gets the secrets of its roles, and no others"):
          front.succeed("install -d -m 700 /var/lib/secrets")
          for role in ("api", "socket"):
              url = back.succeed(
                  f"sed 's/@localhost/@${nodes.back.networking.primaryIPAddress}/' /var/lib/revq/{role}.amqp-url"
              ).strip()
              front.succeed(f"(umask 077 && echo '{url}' >/var/lib/secrets/{role}.amqp-url)")

      with subtest("a text from a third machine goes through both, and comes back"):
          result = client.wait_until_succeeds(
              "revq send --wait --url http://front:8081 --socket-url ws://front:8083/listen_results --text abcdef",
              timeout=120,
          )
          assert result.strip() == "fedcba", result

      with subtest("while the broker is away, texts are refused with 503, and accepted again when it is back"):
          back.succeed("systemctl stop rabbitmq")
          client.wait_until_succeeds(
              "test \"$(curl -s -o /dev/null -w '%{http_code}' --data text=abcdef http://front:8081/queue_reverse_text)\" = 503",
              timeout=60,
          )
          back.succeed("systemctl start rabbitmq")
          client.wait_until_succeeds("revq send --url http://front:8082 --text abcdef", timeout=120)

      with subtest("the front machine runs no worker and no broker, and the other one has no sites"):
          front.fail("systemctl is-active 'revq-worker@*' rabbitmq")
          back.fail("systemctl is-active 'revq-api@*' 'revq-socket@*'")
          back.wait_for_closed_port(8081)
    '';
}
