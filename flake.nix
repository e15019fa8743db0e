{
  description = "A task queue over RabbitMQ whose results are pushed to listeners";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-26.05";

  outputs =
    { self, nixpkgs }:
    let
      inherit (nixpkgs) lib;

      eachSystem =
        f:
        lib.genAttrs [ "x86_64-linux" "aarch64-linux" ] (
          system: f nixpkgs.legacyPackages.${system} self.packages.${system}.default
        );

      # The version that Go gives a build of the same commit.
      commit = self.rev or self.dirtyRev or "";
      version = lib.concatStringsSep "-" (
        [ "0.0.0" ]
        ++ lib.optionals (commit != "") [
          self.lastModifiedDate
          (lib.substring 0 12 commit + lib.optionalString (self ? dirtyRev) "+dirty")
        ]
      );
    in
    {
      overlays.default = final: _: { revq = final.callPackage ./nix/package.nix { inherit version; }; };

      packages = eachSystem (pkgs: _: { default = (self.overlays.default pkgs pkgs).revq; });

      apps = eachSystem (
        pkgs: revq:
        let
          app = description: program: {
            type = "app";
            inherit program;
            meta = { inherit description; };
          };
          command =
            name: description:
            app description "${pkgs.writeShellScript "revq-${name}" ''exec ${lib.getExe revq} ${name} "$@"''}";
          daemon = name: description: app description (lib.getExe' revq "revq-${name}");
        in
        {
          # RabbitMQ is used only here: nothing else has Erlang in its closure.
          default = app "Run all of revq on this machine, with a RabbitMQ of its own" "${pkgs.writeShellScript "revq-up" ''
            PATH=${lib.makeBinPath [ pkgs.rabbitmq-server ]}:$PATH exec ${lib.getExe revq} up "$@"
          ''}";
          send = command "send" "Send texts";
          listen = command "listen" "Print results as they come";
          setup = command "setup" "Declare the exchange and the queues at the broker";
          dead = command "dead" "List, inspect, requeue and delete dead letters";
          api = daemon "api" "Take texts over HTTP and queue them";
          socket = daemon "socket" "Push results to listeners";
          worker = daemon "worker" "Take tasks, handle them, publish the results";
        }
      );

      nixosModules.default =
        { lib, pkgs, ... }:
        {
          imports = [ ./nix/module.nix ];
          # The same package as that of the module itself, with the commit in its version.
          services.revq.package = lib.mkDefault (self.overlays.default pkgs pkgs).revq;
        };

      # What `nix flake check` evaluates the module with; see nix/README.md for a configuration to begin with.
      nixosConfigurations.example = lib.nixosSystem {
        modules = [
          self.nixosModules.default
          {
            nixpkgs.hostPlatform = "x86_64-linux";
            boot.loader.grub.enable = false;
            fileSystems."/" = {
              device = "/dev/disk/by-label/nixos";
              fsType = "ext4";
            };
            system.stateVersion = lib.trivial.release;
            services.revq.enable = true;
            services.revq.rabbitmq.enable = true;
          }
        ];
      };

      checks = eachSystem (
        pkgs: revq:
        {
          package = revq;
          format = pkgs.runCommand "revq-nix-format" { nativeBuildInputs = [ pkgs.nixfmt ]; } ''
            nixfmt --check ${self}/flake.nix ${self}/nix/*.nix ${self}/nix/tests/*.nix
            touch $out
          '';
        }
        // lib.mapAttrs' (
          file: _:
          lib.nameValuePair (lib.removeSuffix ".nix" file) (
            pkgs.testers.runNixOSTest {
              imports = [ (./nix/tests + "/${file}") ];
              defaults = self.nixosModules.default;
            }
          )
        ) (builtins.readDir ./nix/tests)
      );

      devShells = eachSystem (
        pkgs: revq: {
          default = pkgs.mkShell {
            inputsFrom = [ revq ];
            packages = [
              pkgs.go-tools # staticcheck
              pkgs.rabbitmq-server
            ];
          };
        }
      );

      formatter = eachSystem (pkgs: _: pkgs.nixfmt-tree);
    };
}
