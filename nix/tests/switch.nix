# A switch to another configuration, as nixos-rebuild does it, that adds a site and a worker, and back.
{ lib, ... }:
{
  name = "revq-switch";

  nodes.machine = {
    services.revq = {
      enable = true;
      rabbitmq.enable = true;
      rabbitmq.diskFreeLimit = "50MB";
      worker.settings.pause = "1ms";
    };
    specialisation = {
      more.configuration.services.revq = {
        api.sites = lib.mkForce [
          1
          2
          4
        ];
        worker.instances = lib.mkForce 3;
      };
      slower.configuration.services.revq.worker.settings.pause = lib.mkForce "2ms";
    };
    virtualisation.memorySize = 2048;
    virtualisation.diskSize = 4096;
  };

  testScript =
    { nodes, ... }:
    ''
      base = "${nodes.machine.system.build.toplevel}"
      more = f"{base}/specialisation/more"
      slower = f"{base}/specialisation/slower"
      services = ("revq-api@1", "revq-socket@3", "revq-worker@1", "rabbitmq")


      def switch(configuration: str) -> None:
          machine.succeed(f"{configuration}/bin/switch-to-configuration test")


      def pids() -> dict[str, str]:
          return {s: machine.succeed(f"systemctl show -P MainPID {s}").strip() for s in services}


      def through(site: int) -> None:
          machine.succeed(f"test \"$(revq send --wait --url http://localhost:808{site} --text abcdef)\" = fedcba")


      machine.wait_for_unit("revq-worker@1.service")
      through(1)
      before = pids()

      with subtest("a switch adds a site and a worker, and restarts nothing"):
          switch(more)
          machine.wait_for_unit("revq-worker@3.service")
          through(4)
          assert pids() == before, pids()

      with subtest("a switch back takes them away, and restarts nothing"):
          switch(base)
          machine.wait_until_fails("systemctl is-active revq-worker@3.service", timeout=60)
          machine.wait_for_closed_port(8084)
          assert pids() == before, pids()
          through(1)

      with subtest("a setting of the workers restarts the workers alone"):
          switch(slower)
          machine.wait_for_unit("revq-worker@1.service")
          after = pids()
          assert after["revq-worker@1"] != before["revq-worker@1"], after
          assert {**after, "revq-worker@1": ""} == {**before, "revq-worker@1": ""}, after
          through(1)
    '';
}
