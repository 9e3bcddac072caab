"""Other programs' doors to GigaVim."""
